//! A storage of any type behind one handle.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use super::{
    Capabilities, Charge, Get, Invalidation, Key, Lookup, Name, Put, PutOutcome, Result, Storage,
    Tags, Verdict, When,
};

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The object-safe twin of [`Storage`]. Its methods carry a suffix because a type that implements
/// both traits could not call either by one name (E0034).
trait StorageDyn: fmt::Debug + Send + Sync {
    fn get_dyn<'a>(&'a self, key: &'a Key, get: Get) -> BoxFuture<'a, Result<Lookup>>;
    fn put_dyn<'a>(&'a self, key: &'a Key, put: Put<'a>) -> BoxFuture<'a, Result<PutOutcome>>;
    fn delete_dyn<'a>(&'a self, key: &'a Key, when: When) -> BoxFuture<'a, Result<bool>>;
    fn invalidate_dyn<'a>(
        &'a self,
        namespace: &'a Name,
        tags: Tags<'a>,
        how: Invalidation,
    ) -> BoxFuture<'a, Result<()>>;
    fn acquire_dyn<'a>(&'a self, charges: &'a [Charge<'a>]) -> BoxFuture<'a, Result<Vec<Verdict>>>;
    fn capabilities_dyn(&self) -> Capabilities;
}

impl<S: Storage> StorageDyn for S {
    fn get_dyn<'a>(&'a self, key: &'a Key, get: Get) -> BoxFuture<'a, Result<Lookup>> {
        Box::pin(self.get(key, get))
    }

    fn put_dyn<'a>(&'a self, key: &'a Key, put: Put<'a>) -> BoxFuture<'a, Result<PutOutcome>> {
        Box::pin(self.put(key, put))
    }

    fn delete_dyn<'a>(&'a self, key: &'a Key, when: When) -> BoxFuture<'a, Result<bool>> {
        Box::pin(self.delete(key, when))
    }

    fn invalidate_dyn<'a>(
        &'a self,
        namespace: &'a Name,
        tags: Tags<'a>,
        how: Invalidation,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.invalidate(namespace, tags, how))
    }

    fn acquire_dyn<'a>(&'a self, charges: &'a [Charge<'a>]) -> BoxFuture<'a, Result<Vec<Verdict>>> {
        Box::pin(self.acquire(charges))
    }

    fn capabilities_dyn(&self) -> Capabilities {
        self.capabilities()
    }
}

/// A cheaply cloned handle to a storage of any type, so that layers, handlers and application state
/// carry no storage type parameter.
///
/// # Examples
///
/// ```
/// use tower_keep::{Storage, MemoryStorage, storage::AnyStorage};
///
/// let storage: AnyStorage = MemoryStorage::new().erase();
/// assert!(storage.capabilities().local);
/// ```
#[derive(Clone)]
pub struct AnyStorage(Arc<dyn StorageDyn>);

impl AnyStorage {
    /// A handle to this storage.
    pub fn new(storage: impl Storage) -> Self {
        Self(Arc::new(storage))
    }
}

impl fmt::Debug for AnyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Storage for AnyStorage {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        self.0.get_dyn(key, get).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        self.0.put_dyn(key, put).await
    }

    async fn delete(&self, key: &Key, when: When) -> Result<bool> {
        self.0.delete_dyn(key, when).await
    }

    async fn invalidate(&self, namespace: &Name, tags: Tags<'_>, how: Invalidation) -> Result<()> {
        self.0.invalidate_dyn(namespace, tags, how).await
    }

    async fn acquire(&self, charges: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        self.0.acquire_dyn(charges).await
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities_dyn()
    }

    fn erase(self) -> AnyStorage {
        self
    }
}
