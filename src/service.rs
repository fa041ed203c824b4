//! Calling services.

use std::future::poll_fn;

use http::Request;
use tower_service::Service;

/// Calls a service when it is ready.
pub(crate) async fn oneshot<S, B>(
    mut service: S,
    request: Request<B>,
) -> Result<S::Response, S::Error>
where
    S: Service<Request<B>>,
{
    poll_fn(|cx| service.poll_ready(cx)).await?;
    service.call(request).await
}
