//! Looks after the operator itself: is the store there and does it take writes, is there room on the disk, does the apiserver
//! answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::api::ListParams;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;
use whetstone_api::Blade;
use whetstone_store::{Store, StoreError};

use crate::clock::now_ms;
use crate::cluster::{Reach, Seen};
use crate::health::{Component, Health};
use crate::metrics::Metrics;
use crate::pki::SiteCa;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(3);
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
    /// Told when the apiserver answers.
    pub reach: Reach,
    pub health: Health,
    pub metrics: Arc<Metrics>,
    pub ca: Arc<SiteCa>,
    /// Where an embedded database lies.
    pub disk: Option<PathBuf>,
}

impl Upkeep {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = look.tick() => self.look().await,
            }
        }
    }

    async fn look(&self) {
        certificates(&self.metrics, &self.ca, now_ms());
        let started = std::time::Instant::now();
        let store = self.store.ping().await;
        self.metrics.store_seconds.with_label_values(&["ping"]).observe(started.elapsed().as_secs_f64());
        if let Err(error) = &store {
            self.metrics.store_errors.with_label_values(&[error.category()]).inc();
        }
        self.health.set(Component::Store, store_state(&store, self.store.write_trouble()));
        if let Ok(bytes) = self.store.size_bytes().await {
            self.metrics.store_bytes.set(bytes);
        }
        let answers = self.ask_kube().await;
        self.health.set(Component::Kube, kube_state(answers, self.seen.failing()));
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
            Ok(Ok(_)) => {
                self.reach.answered();
                Ok("answers".to_owned())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", KUBE_PATIENCE.as_secs())),
        }
    }
}

/// An apiserver that answers is not enough: what is seen of one kind may be old. `failing`: the kind, and for how long.
fn kube_state(answers: Result<String, String>, failing: Option<(String, i64)>) -> Result<String, String> {
    match (answers, failing) {
        (Ok(_), Some((kind, ms))) if ms > WATCH_PATIENCE_MS => {
            Err(format!("answers, but what is seen is old: the watch of {kind}s fails since {} s", ms / 1000))
        }
        (answers, _) => answers,
    }
}

/// A sign of life needs no room on the disk: what the last writes met counts, too.
fn store_state(ping: &Result<(), StoreError>, write_trouble: Option<String>) -> Result<String, String> {
    match (ping, write_trouble) {
        (Err(error), _) => Err(error.to_string()),
        (Ok(()), Some(why)) => Err(format!("answers, but takes no writes: {why}")),
        (Ok(()), None) => Ok("answers".to_owned()),
    }
}

/// How long the site's own certificates hold yet.
fn certificates(metrics: &Metrics, ca: &SiteCa, now_ms: i64) {
    for (certificate, end_ms) in [("ca", Some(ca.first_end_ms())), ("server", ca.server_end_ms())] {
        if let Some(end_ms) = end_ms {
            let left = (end_ms - now_ms) as f64 / 1000.0;
            metrics.certificate_expires.with_label_values(&[certificate]).set(left);
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
    fn a_store_that_takes_no_writes_is_not_well() {
        assert_eq!(store_state(&Ok(()), None), Ok("answers".to_owned()));
        let full = store_state(&Ok(()), Some("no space left for the database".to_owned()));
        assert_eq!(full, Err("answers, but takes no writes: no space left for the database".to_owned()));
        let gone = store_state(&Err(StoreError::Slow { seconds: 30 }), Some("full".to_owned()));
        assert_eq!(gone, Err("database did not answer within 30 s".to_owned()));
    }

    #[test]
    fn the_sites_certificates_are_counted_down() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let now = now_ms();
        let ca = Arc::new(SiteCa::open(dir.path(), true, now).unwrap());
        let left = |certificate: &str| metrics.certificate_expires.with_label_values(&[certificate]).get();
        certificates(&metrics, &ca, now);
        assert_eq!(left("server"), 0.0, "there is none yet");
        crate::pki::server_config(ca.clone(), vec!["localhost".into()], 0).unwrap();
        certificates(&metrics, &ca, now + 3_600_000);
        let hours = |certificate: &str| (left(certificate) / 3600.0).round();
        assert_eq!(hours("ca"), (crate::pki::CA_LIFETIME_MS / 3_600_000 - 1) as f64);
        assert_eq!(hours("server"), 90.0 * 24.0 - 1.0);
    }

    #[test]
    fn a_watch_that_fails_for_long_is_named() {
        let answers = || Ok("answers".to_owned());
        let failing = |ms| Some(("Node".to_owned(), ms));
        assert!(kube_state(answers(), None).is_ok());
        assert!(kube_state(answers(), failing(WATCH_PATIENCE_MS)).is_ok(), "they begin anew now and then");
        let old = kube_state(answers(), failing(42_000)).unwrap_err();
        assert!(old.contains("watch of Nodes") && old.contains("42 s"), "{old}");
        assert_eq!(kube_state(Err("refused".into()), failing(42_000)), Err("refused".into()));
    }

    #[test]
    fn the_folder_of_a_store() {
        assert_eq!(folder_of("sqlite:/var/lib/w/store.db?mode=rwc"), Some("/var/lib/w".into()));
        assert_eq!(folder_of("sqlite:///x/store.db"), Some("/x".into()));
        assert_eq!(folder_of("sqlite:store.db"), Some(".".into()));
        assert_eq!(folder_of("postgres://h/db"), None);
    }
}
