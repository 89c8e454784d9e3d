//! Writes to the store that go in one transaction with all others of their kind that come meanwhile.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use whetstone_store::{StoreError, all_or_each};

use super::SiteError;

/// Writes in one transaction at most.
const MOST: usize = 500;

/// Of a transaction that failed all who wait for it share the error.
type Answer<Out> = oneshot::Sender<Result<Out, Arc<StoreError>>>;

/// The way to one kind of write. The writer behind it ends when the last of these is dropped.
pub struct Together<In, Out> {
    queue: mpsc::Sender<(In, Answer<Out>)>,
}

impl<In: Clone + Send + 'static, Out: Send + 'static> Together<In, Out> {
    /// `write` answers one for each that it is given, in their order. What becomes of the others where one of them is at fault:
    /// [`all_or_each`].
    pub fn start<F>(tasks: &TaskTracker, write: impl Fn(Vec<In>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Vec<Out>, StoreError>> + Send,
    {
        let (queue, mut waiting) = mpsc::channel(MOST);
        tasks.spawn(async move {
            let mut batch: Vec<(In, Answer<Out>)> = Vec::with_capacity(MOST);
            while waiting.recv_many(&mut batch, MOST).await > 0 {
                let (items, answers): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
                let together = write(items.clone());
                let written = all_or_each(items, together, |item| write(vec![item])).await;
                for (answer, outcome) in answers.into_iter().zip(written) {
                    // Who asked may be gone: the process ends.
                    let _ = answer.send(outcome);
                }
            }
        });
        Together { queue }
    }

    /// Written when this returns.
    pub async fn write(&self, item: In) -> Result<Out, SiteError> {
        let (answer, answered) = oneshot::channel();
        self.queue.send((item, answer)).await.map_err(|_| SiteError::Ending)?;
        Ok(answered.await.map_err(|_| SiteError::Ending)??)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn what_comes_meanwhile_goes_together_and_each_hears_of_its_own() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = sizes.clone();
        let doubled = Together::start(&TaskTracker::new(), move |items: Vec<u32>| {
            seen.lock().unwrap().push(items.len());
            async move {
                tokio::task::yield_now().await;
                if items.contains(&13) {
                    return Err(StoreError::Corrupt("13".into()));
                }
                Ok(items.into_iter().map(|n| n * 2).collect())
            }
        });
        let answers = futures::future::join_all((0..10).map(|n| doubled.write(n))).await;
        let answers: Vec<u32> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]);
        assert!(sizes.lock().unwrap().len() <= 2, "{sizes:?}");
        let answers = futures::future::join_all([13, 14].map(|n| doubled.write(n))).await;
        assert!(matches!(answers[0], Err(SiteError::Batch(_))), "{answers:?}");
        assert!(matches!(answers[1], Ok(28)), "the other one did nothing wrong: {answers:?}");
        assert_eq!(doubled.write(15).await.unwrap(), 30);
    }
}
