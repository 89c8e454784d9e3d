//! The Kubernetes side: what is seen of objects and nodes, and what is done to them. Decides nothing.

pub mod drain;
mod error;
pub mod events;
mod failing;
mod fence;
pub mod leader;
mod lease;
pub mod node;
pub mod precedence;
mod reach;
mod runs;
pub mod watch;

use std::time::Duration;

use kube::Client;

pub use error::ClusterError;
pub use fence::Fence;
pub use reach::Reach;
pub use watch::Seen;

/// How long one request to the apiserver may take.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// A client for the cluster of `kubeconfig`, or the one that this process runs in or is set up for.
pub async fn client(kubeconfig: Option<&std::path::Path>) -> Result<Client, anyhow::Error> {
    Ok(Client::try_from(config(kubeconfig).await?)?)
}

/// The same, but every answer comes back as it is. The other one waits and asks again where the apiserver says 429, which for an
/// eviction means that a disruption budget forbids it.
pub async fn client_that_asks_once(kubeconfig: Option<&std::path::Path>) -> Result<Client, anyhow::Error> {
    let mut config = config(kubeconfig).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

async fn config(kubeconfig: Option<&std::path::Path>) -> Result<kube::Config, anyhow::Error> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = kube::config::Kubeconfig::read_from(path)?;
            kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer().await?,
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    // Watches are idle for minutes: no limit on reading. Single requests have REQUEST_LIMIT.
    config.read_timeout = None;
    Ok(config)
}

/// Runs one request within [`REQUEST_LIMIT`].
pub async fn within<T>(
    what: &str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ClusterError> {
    within_of(what, REQUEST_LIMIT, request).await
}

/// Runs one request within `limit`.
async fn within_of<T>(
    what: &str,
    limit: Duration,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ClusterError> {
    match tokio::time::timeout(limit, request).await {
        Ok(answer) => answer.map_err(ClusterError::of(what)),
        Err(_) => Err(ClusterError::Timeout { what: what.to_owned(), seconds: limit.as_secs() }),
    }
}
