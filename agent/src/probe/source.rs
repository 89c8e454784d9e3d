//! A source of facts that may hang: asked in a thread of its own, given up after a time limit, and not asked
//! again until the old question is answered, so that hung threads never pile up.

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// What became of one question.
#[derive(Debug, PartialEq)]
pub enum Answer<T> {
    Done(T, Duration),
    /// No answer yet; asked so long ago.
    Timeout(Duration),
    /// The thread could not be started or died.
    Failed(String),
}

/// The question that a source is working on, if any.
pub struct Slot<T> {
    name: &'static str,
    pending: Option<Pending<T>>,
}

struct Pending<T> {
    answer: Receiver<(T, Duration)>,
    asked: Instant,
    /// A look has already reported it as timed out.
    overdue: bool,
    failed: Option<String>,
}

impl<T: Send + 'static> Slot<T> {
    pub fn new(name: &'static str) -> Self {
        Self { name, pending: None }
    }

    /// Asks, unless the last question is still open. A late answer to an old question is dropped: it is older
    /// than the question asked now.
    pub fn ask(&mut self, work: impl FnOnce() -> T + Send + 'static) {
        if let Some(pending) = &self.pending
            && matches!(pending.answer.try_recv(), Err(TryRecvError::Empty))
        {
            return;
        }
        let (sender, answer) = sync_channel(1);
        let asked = Instant::now();
        let started = std::thread::Builder::new().name(format!("probe-{}", self.name)).spawn(move || {
            let value = work();
            // Nobody listens any more if the look gave up and the slot is gone.
            let _ = sender.send((value, asked.elapsed()));
        });
        let failed = started.err().map(|error| format!("no thread for {}: {error}", self.name));
        self.pending = Some(Pending { answer, asked, overdue: false, failed });
    }

    /// Waits until `deadline`; a question that an earlier look has given up is not waited for again.
    pub fn wait(&mut self, deadline: Instant) -> Answer<T> {
        let Some(pending) = &mut self.pending else {
            return Answer::Failed(format!("{} was not asked", self.name));
        };
        if let Some(why) = &pending.failed {
            let why = why.clone();
            self.pending = None;
            return Answer::Failed(why);
        }
        let left =
            if pending.overdue { Duration::ZERO } else { deadline.saturating_duration_since(Instant::now()) };
        match pending.answer.recv_timeout(left) {
            Ok((value, took)) => {
                self.pending = None;
                Answer::Done(value, took)
            }
            Err(RecvTimeoutError::Timeout) => {
                pending.overdue = true;
                Answer::Timeout(pending.asked.elapsed())
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.pending = None;
                Answer::Failed(format!("{} stopped without an answer", self.name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, mpsc};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn a_hung_source_is_not_asked_twice_and_is_asked_again_after_it_answered() {
        let asked = Arc::new(AtomicU32::new(0));
        let (release, gate) = mpsc::channel::<()>();
        let (told, finished) = mpsc::channel::<()>();
        let mut slot = Slot::new("test");
        let count = asked.clone();
        slot.ask(move || {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = gate.recv();
            let _ = told.send(());
            1
        });
        assert!(matches!(slot.wait(soon()), Answer::Timeout(_)));
        for _ in 0..3 {
            let count = asked.clone();
            slot.ask(move || {
                count.fetch_add(1, Ordering::SeqCst);
                2
            });
            assert!(matches!(slot.wait(soon()), Answer::Timeout(_)));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1, "a hung source was asked again");
        release.send(()).unwrap();
        finished.recv().unwrap();
        // The answer is in the channel or about to be; a new question must be possible from then on.
        loop {
            slot.ask(|| 3);
            match slot.wait(Instant::now() + Duration::from_secs(10)) {
                Answer::Done(3, _) => break,
                Answer::Done(1, _) | Answer::Timeout(_) => std::thread::yield_now(),
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    #[test]
    fn a_source_that_panics_is_a_failed_answer() {
        let mut slot: Slot<u32> = Slot::new("test");
        slot.ask(|| panic!("planted"));
        assert!(matches!(slot.wait(Instant::now() + Duration::from_secs(10)), Answer::Failed(_)));
    }
}
