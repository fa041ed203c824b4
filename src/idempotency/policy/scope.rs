//! Whose keys they are.

use std::{future::Future, pin::Pin, sync::Arc};

use crate::{RequestHead, storage::Identity};

pub(super) type Found = Result<Option<Identity>, ScopeUnavailable>;
pub(super) type ScopeFuture = Pin<Box<dyn Future<Output = Found> + Send>>;
/// Whose key it is cannot be found out for now.
pub(in crate::idempotency) struct ScopeUnavailable;

/// Whose keys they are.
#[derive(Clone)]
pub(in crate::idempotency) enum Scope {
    Public,
    Found(Arc<dyn Fn(RequestHead<'_>) -> Option<Identity> + Send + Sync>),
    Asked(Arc<dyn Fn(RequestHead<'_>) -> ScopeFuture + Send + Sync>),
}

impl Scope {
    /// Whose key it is. Borrows nothing, so that it can be waited for.
    pub(in crate::idempotency) fn find(
        &self,
        head: RequestHead<'_>,
    ) -> impl Future<Output = Found> + Send + 'static + use<> {
        let found = match self {
            Self::Public => Ok(Some(Identity::global())),
            Self::Found(find) => Ok(find(head)),
            Self::Asked(ask) => Err(ask(head)),
        };
        async move {
            match found {
                Ok(scope) => Ok(scope),
                Err(asked) => asked.await,
            }
        }
    }
}
