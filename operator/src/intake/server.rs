//! The listener: TLS handshakes, HTTP/1.1 connections, bounds on both, and an orderly end.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::Metrics;
use super::limits::{AtOnce, Turn};
use crate::pki::Peer;

/// Bounds of the listener.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Open connections at most; further ones wait in the kernel's backlog. Each costs about 35 KiB. When three quarters are
    /// taken, a further one ends with its first answer: where there are more agents than places, everybody's turn comes.
    pub connections: usize,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// Of these without a client certificate, of one address: in the handshake, or on their way to a join. Further ones are cut
    /// off. Many agents may come from one address, behind a Service or a gateway, but not in one moment.
    pub strangers: usize,
    /// From one request's end to the next one's header, without a client certificate.
    pub stranger_idle: Duration,
    /// The same with one. Longer than the report interval, or every report would pay for a handshake.
    pub idle: Duration,
    /// For what is under way when the server is told to end.
    pub shutdown: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            connections: 20_000,
            strangers: 2_048,
            stranger_idle: Duration::from_secs(5),
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            shutdown: Duration::from_secs(10),
        }
    }
}

/// Who sent a request; an extension of each.
#[derive(Debug, Clone)]
pub struct Client {
    pub address: SocketAddr,
    /// `Err` says why there is none.
    pub peer: Result<Peer, String>,
}

/// Serves `app` until `cancel`, then lets requests that are under way end. Errors of single connections are theirs alone.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    app: Router,
    limits: ServerLimits,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(limits.connections));
    let strangers = AtOnce::new(limits.strangers);
    let connections = TaskTracker::new();
    loop {
        // First the place, then the connection: what has no place is not accepted.
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, address, place)) = accepted else { continue };
        let Some(stranger) = strangers.begin(address.ip()) else {
            metrics.handshake_failed("crowded");
            continue;
        };
        let connection = Connection {
            address,
            stranger,
            keep: places.available_permits() >= limits.connections / 4,
            limits: limits.clone(),
            metrics: metrics.clone(),
            cancel: cancel.clone(),
        };
        connections.spawn(connection.run(stream, acceptor.clone(), app.clone(), place));
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(limits.shutdown, connections.wait()).await.is_err() {
        tracing::warn!(left = connections.len(), "connections were cut off at shutdown");
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => Some((stream, address, place)),
        Err(error) => {
            // Out of file descriptors, mostly: it passes when connections end, and a tight loop would not help.
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

struct Connection {
    address: SocketAddr,
    /// Its turn as somebody who has shown no certificate.
    stranger: Turn<IpAddr>,
    /// Stays open for further requests.
    keep: bool,
    limits: ServerLimits,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
}

impl Connection {
    async fn run(self, stream: TcpStream, acceptor: TlsAcceptor, app: Router, place: OwnedSemaphorePermit) {
        let _place = place;
        let _open = self.metrics.connection();
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(self.limits.handshake, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.metrics.handshake_failed("refused");
                tracing::debug!(peer = %self.address, %error, "TLS handshake failed");
                return;
            }
            Err(_) => {
                self.metrics.handshake_failed("slow");
                return;
            }
        };
        let peer = match stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()) {
            Some(leaf) => Peer::from_certificate(leaf).map_err(|e| e.to_string()),
            None => Err("no client certificate".to_owned()),
        };
        let (idle, _stranger) = match &peer {
            Ok(_) => {
                drop(self.stranger);
                (self.limits.idle, None)
            }
            Err(_) => (self.limits.stranger_idle.min(self.limits.idle), Some(self.stranger)),
        };
        let client = Arc::new(Client { address: self.address, peer });
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(client.clone());
            app.clone().oneshot(request.map(Body::new))
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .keep_alive(self.keep)
            .header_read_timeout(idle)
            .max_headers(32)
            .max_buf_size(16 << 10)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.cancel.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %self.address, %error, "connection ended");
        }
    }
}
