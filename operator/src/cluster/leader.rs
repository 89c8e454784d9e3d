//! One leader at a time, by a Lease. Who loses it ends: a process that once led and goes on could act on an old view.

use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::sync::watch;
use tracing::info;

/// The lease's name, in the operator's namespace.
pub const LEASE: &str = "whetstone-operator";
/// How long a leader that died holds the others up, seconds.
const DURATION_S: u64 = 10;
/// The leader renews this long before its time is over, seconds.
const GRACE_S: u64 = 4;

/// Waits for the lead. The receiver turns to `false` when it is lost.
pub async fn lead(client: Client, namespace: &str, identity: &str) -> anyhow::Result<Lead> {
    let manager: LeaseManager = LeaseManagerBuilder::new(client, LEASE)
        .with_namespace(namespace)
        .with_identity(identity)
        .with_duration(DURATION_S)
        .with_grace(GRACE_S)
        .with_field_manager(whetstone_api::FIELD_MANAGER)
        .build()
        .await?;
    let (mut leading, task) = manager.watch().await;
    while !*leading.borrow_and_update() {
        leading.changed().await?;
    }
    info!(identity, "leading");
    Ok(Lead { leading, task })
}

/// Having the lead.
pub struct Lead {
    leading: watch::Receiver<bool>,
    task: tokio::task::JoinHandle<Result<LeaseManager, kube_lease_manager::LeaseManagerError>>,
}

impl Lead {
    /// Waits until the lead is lost.
    pub async fn lost(&mut self) {
        loop {
            if !*self.leading.borrow_and_update() || self.leading.changed().await.is_err() {
                return;
            }
        }
    }

    /// Gives the lead back, so that another need not wait for its end.
    pub async fn release(self) {
        drop(self.leading);
        // The manager ends and releases when nobody listens any more.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(5), self.task).await;
    }
}
