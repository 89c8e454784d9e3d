//! Looks after the operator itself: is the store there, is there room on the disk, does the apiserver answer; thins old evidence.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::api::ListParams;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use whetstone_api::Blade;
use whetstone_store::{RetainPolicy, Store};

use crate::clock::now_ms;
use crate::cluster::Seen;
use crate::health::{Component, Health};
use crate::metrics::Metrics;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(3);
/// Between two thinnings of the store.
const RETAIN: Duration = Duration::from_secs(3600);
/// Less free space than this where the store lies is said before it is too late: a day of evidence of 1,000 blades.
const LEAST_FREE: u64 = 64 << 20;
/// Watches begin anew now and then; only a failure that lasts is one.
const WATCH_PATIENCE_MS: i64 = 10_000;

/// An apiserver that answers one small question no sooner is not well.
const KUBE_PATIENCE: Duration = Duration::from_secs(5);

/// What is looked after.
pub struct Upkeep {
    pub store: Store,
    pub seen: Seen,
    pub client: Client,
    pub health: Health,
    pub metrics: Arc<Metrics>,
    /// Where an embedded database lies.
    pub disk: Option<PathBuf>,
}

impl Upkeep {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut retain = tokio::time::interval(RETAIN);
        retain.tick().await;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = look.tick() => self.look().await,
                _ = retain.tick() => self.retain().await,
            }
        }
    }

    async fn look(&self) {
        let started = std::time::Instant::now();
        let store = self.store.ping().await;
        self.metrics.store_seconds.with_label_values(&["ping"]).observe(started.elapsed().as_secs_f64());
        self.health.set(
            Component::Store,
            match &store {
                Ok(()) => Ok("answers".to_owned()),
                Err(error) => {
                    self.metrics.store_errors.with_label_values(&[error.category()]).inc();
                    Err(error.to_string())
                }
            },
        );
        if let Ok(bytes) = self.store.size_bytes().await {
            self.metrics.store_bytes.set(bytes);
        }
        let kube = match self.seen.failing_for_ms() {
            Some(ms) if ms > WATCH_PATIENCE_MS => Err(format!("watches fail since {} s", ms / 1000)),
            _ => self.ask_kube().await,
        };
        self.health.set(Component::Kube, kube);
        let disk = match &self.disk {
            None => Ok("not ours".to_owned()),
            Some(path) => match free_bytes(path).await {
                Ok(free) if free < LEAST_FREE => {
                    Err(format!("{} MiB free in {}, {} needed", free >> 20, path.display(), LEAST_FREE >> 20))
                }
                Ok(free) => Ok(format!("{} MiB free", free >> 20)),
                Err(error) => Err(format!("{}: {error}", path.display())),
            },
        };
        self.health.set(Component::Disk, disk);
    }

    /// Watches stay open, and silent, where an apiserver has lost its etcd: a list without a version asks that, too.
    async fn ask_kube(&self) -> Result<String, String> {
        let blades: Api<Blade> = Api::all(self.client.clone());
        let one = ListParams::default().limit(1);
        match tokio::time::timeout(KUBE_PATIENCE, blades.list_metadata(&one)).await {
            Ok(Ok(_)) => Ok("answers".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", KUBE_PATIENCE.as_secs())),
        }
    }

    async fn retain(&self) {
        match self.store.retain(&RetainPolicy::default(), now_ms()).await {
            Ok(retained) => info!(?retained, "old evidence thinned"),
            Err(error) => {
                self.metrics.store_errors.with_label_values(&[error.category()]).inc();
                warn!(%error, "old evidence could not be thinned, it is tried again");
            }
        }
    }
}

async fn free_bytes(path: &Path) -> std::io::Result<u64> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let space = rustix::fs::statvfs(&path)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    })
    .await?
}

/// The folder that an SQLite URL's file lies in.
pub fn folder_of(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    let path = Path::new(path.split('?').next()?);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    Some(parent.unwrap_or(Path::new(".")).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_store() {
        assert_eq!(folder_of("sqlite:/var/lib/w/store.db?mode=rwc"), Some("/var/lib/w".into()));
        assert_eq!(folder_of("sqlite:///x/store.db"), Some("/x".into()));
        assert_eq!(folder_of("sqlite:store.db"), Some(".".into()));
        assert_eq!(folder_of("postgres://h/db"), None);
    }
}
