//! Until when this process may act as the leader. Everything that acts for it asks first, and again before each try.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{ClusterError, within_of};

/// Shared by all that act for the leader; cheap to ask and to clone.
#[derive(Debug, Clone)]
pub struct Fence(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// What times are counted from.
    begun: Instant,
    /// It may act for so long, microseconds after `begun`.
    until: AtomicU64,
    /// For good: no renewal opens it again.
    closed: AtomicBool,
}

impl Fence {
    /// Of one that may not act yet.
    pub fn shut() -> Fence {
        Fence::with(0)
    }

    /// Of one that shares the site with nobody: it may act until [`Fence::close`].
    pub fn open() -> Fence {
        Fence::with(u64::MAX)
    }

    fn with(until: u64) -> Fence {
        Fence(Arc::new(Inner {
            begun: Instant::now(),
            until: AtomicU64::new(until),
            closed: AtomicBool::new(false),
        }))
    }

    fn micros(&self, time: Instant) -> u64 {
        u64::try_from(time.saturating_duration_since(self.0.begun).as_micros()).unwrap_or(u64::MAX)
    }

    /// A renewal was confirmed: it may act until then.
    pub fn extend(&self, until: Instant) {
        self.0.until.fetch_max(self.micros(until), Ordering::AcqRel);
    }

    /// No step is begun any more.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
    }

    /// How long it may still act; `None` = not any more.
    pub fn left(&self) -> Option<Duration> {
        self.left_at(Instant::now())
    }

    fn left_at(&self, now: Instant) -> Option<Duration> {
        if self.0.closed.load(Ordering::Acquire) {
            return None;
        }
        let left = self.0.until.load(Ordering::Acquire).saturating_sub(self.micros(now));
        (left > 0).then(|| Duration::from_micros(left))
    }

    pub fn holds(&self) -> bool {
        self.left().is_some()
    }

    /// Runs one request within `limit`, and no longer than this may act: what comes later might undo what the next leader did.
    pub async fn within<T>(
        &self,
        what: &str,
        limit: Duration,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ClusterError> {
        match self.left() {
            Some(left) => within_of(what, limit.min(left), request).await,
            None => Err(ClusterError::NotLeading { what: what.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_with_a_renewal_and_shuts_by_itself() {
        let fence = Fence::shut();
        assert!(!fence.holds(), "nobody has said that it leads");
        let begun = fence.0.begun;
        let after = |seconds: u64| begun + Duration::from_secs(seconds);
        fence.extend(after(7));
        assert_eq!(fence.left_at(after(3)), Some(Duration::from_secs(4)));
        // An answer that comes late takes nothing back.
        fence.extend(after(5));
        assert_eq!(fence.left_at(after(6)), Some(Duration::from_secs(1)));
        assert_eq!(fence.left_at(after(7)), None);
        assert_eq!(fence.left_at(after(3600)), None, "a process that was paused finds it shut");
    }

    #[test]
    fn once_closed_it_stays_closed() {
        let (mine, shared) = (Fence::open(), Fence::shut());
        assert!(mine.holds());
        mine.close();
        assert!(!mine.holds());
        shared.close();
        shared.extend(Instant::now() + Duration::from_secs(60));
        assert!(!shared.holds(), "a renewal that was on its way opens nothing");
    }

    #[tokio::test]
    async fn no_request_outlives_it() {
        let fence = Fence::shut();
        let called = AtomicBool::new(false);
        let request = async {
            called.store(true, Ordering::Relaxed);
            std::future::pending::<Result<(), kube::Error>>().await
        };
        let refused = fence.within("patch node n-1", Duration::from_secs(60), request).await;
        assert!(matches!(refused, Err(ClusterError::NotLeading { .. })), "{refused:?}");
        assert!(!called.load(Ordering::Relaxed), "it was sent");
        fence.extend(Instant::now() + Duration::from_millis(20));
        let pending = std::future::pending::<Result<(), kube::Error>>();
        let cut = fence.within("patch node n-1", Duration::from_secs(60), pending).await;
        assert!(matches!(cut, Err(ClusterError::Timeout { .. })), "{cut:?}");
    }
}
