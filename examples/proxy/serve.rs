//! An HTTP/1 and HTTP/2 server for any tower service, that stops cleanly.

use std::{convert::Infallible, error::Error, io, net::SocketAddr, pin::pin, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tower::{Service, service_fn};
use tower_keep::rate_limit::PeerAddr;

/// How long running requests may take to finish after SIGINT or SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// Serves until `stop`, and then finishes what is running.
pub(crate) async fn serve<S, R>(
    listener: TcpListener,
    service: S,
    stop: impl Future<Output = ()>,
) -> io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<R>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    R: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let (stopping, stopped) = watch::channel(());
    let (running, mut all_ended) = mpsc::channel::<Infallible>(1);
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of descriptors, most likely: others are about to be closed.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (service, stopped, running) = (service.clone(), stopped.clone(), running.clone());
        tokio::spawn(async move {
            connection(stream, peer, service, stopped).await;
            drop(running);
        });
    }
    drop((listener, stopping, running));
    match timeout(GRACE, all_ended.recv()).await {
        Ok(_) => Ok(()),
        Err(_) => Err(io::Error::other("some requests did not finish in time")),
    }
}

async fn connection<S, R>(
    stream: TcpStream,
    peer: SocketAddr,
    service: S,
    mut stopped: watch::Receiver<()>,
) where
    S: Service<Request<Incoming>, Response = Response<R>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    R: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(PeerAddr(peer));
        // Nothing below has a readiness of its own.
        service.clone().call(request)
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new());
    server.http2().timer(TokioTimer::new());
    let connection =
        server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = pin!(connection);
    // A client that goes away is no mistake of the proxy; one whose answer broke off is cut.
    tokio::select! {
        _ = &mut connection => {}
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// Listens for SIGINT and SIGTERM from now on; the future ends with the first of them.
pub(crate) fn stop_signal() -> impl Future<Output = ()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).expect("a handler for the signal can be installed");
        let mut interrupt = listen(SignalKind::interrupt());
        let mut terminate = listen(SignalKind::terminate());
        async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
    }
    #[cfg(not(unix))]
    async {
        let _ = tokio::signal::ctrl_c().await;
    }
}
