//! Whether the apiserver answers at all. Where it takes calls and says nothing, each of them costs its whole time limit: after
//! some in a row no more are tried, and whoever wanted one comes again, until it has answered somebody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::ClusterError;

/// So many calls in a row without an answer are no accident.
const IN_A_ROW: u32 = 4;

/// Counts; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Reach(Arc<AtomicU32>);

impl Reach {
    /// Refuses what would only wait.
    pub fn ask(&self, what: &str) -> Result<(), ClusterError> {
        if self.0.load(Ordering::Relaxed) < IN_A_ROW {
            return Ok(());
        }
        Err(ClusterError::Silent { what: what.to_owned() })
    }

    /// It has answered.
    pub fn answered(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// How a call ended. A refusal is an answer.
    pub fn ended<T>(&self, result: &Result<T, ClusterError>) {
        match result {
            Err(ClusterError::Timeout { .. }) => {
                // It stays where it is: thousands of calls may end so.
                let more = |count: u32| (count < IN_A_ROW).then_some(count + 1);
                let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
            }
            Err(ClusterError::Silent { .. } | ClusterError::NotLeading { .. }) => {}
            Err(error) if error.code().is_none() => {}
            _ => self.answered(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silence() -> Result<(), ClusterError> {
        Err(ClusterError::Timeout { what: "patch node n-1".into(), seconds: 5 })
    }

    #[test]
    fn after_some_calls_without_an_answer_no_more_are_tried() {
        let reach = Reach::default();
        for _ in 1..IN_A_ROW {
            reach.ended(&silence());
            assert!(reach.ask("patch node n-1").is_ok());
        }
        // One answer in between, and it was no silence.
        let conflict: Result<(), _> = Err(ClusterError::Conflict { what: "patch node n-1".into(), tries: 6 });
        reach.ended(&conflict);
        for _ in 0..IN_A_ROW * 3 {
            reach.ended(&silence());
        }
        assert!(matches!(reach.ask("patch node n-1"), Err(ClusterError::Silent { .. })));
        let not_tried: Result<(), _> = reach.ask("patch node n-1");
        reach.ended(&not_tried);
        assert!(reach.ask("patch node n-1").is_err(), "what was not tried is no answer");
        reach.answered();
        assert!(reach.ask("patch node n-1").is_ok());
    }
}
