//! Writes that go together, and what becomes of them where one of them is at fault.

use std::sync::Arc;

use crate::error::StoreError;

/// One answer for each of `items`: those of `together`, one transaction for them all. Where one of them is at fault, not the
/// database, each goes `alone`: the others do not suffer for it. Once the database itself fails, the rest share its error:
/// one that went away is not waited for by each in turn.
pub async fn all_or_each<In, Out, F>(
    items: Vec<In>,
    together: impl Future<Output = Result<Vec<Out>, StoreError>>,
    alone: impl Fn(In) -> F,
) -> Vec<Result<Out, Arc<StoreError>>>
where
    F: Future<Output = Result<Vec<Out>, StoreError>>,
{
    let mut failed: Option<Arc<StoreError>> = None;
    match together.await {
        Ok(outcomes) if outcomes.len() == items.len() => return outcomes.into_iter().map(Ok).collect(),
        Ok(_) => failed = Some(Arc::new(unanswered())),
        Err(error) if error.is_transient() || items.len() == 1 => failed = Some(Arc::new(error)),
        Err(error) => tracing::error!(%error, writes = items.len(), "refused together: each goes alone"),
    }
    let mut answers = Vec::with_capacity(items.len());
    for item in items {
        let answer = match &failed {
            Some(error) => Err(error.clone()),
            None => alone(item).await.and_then(|mut all| all.pop().ok_or_else(unanswered)).map_err(Arc::new),
        };
        if let Err(error) = &answer
            && error.is_transient()
        {
            failed = Some(error.clone());
        }
        answers.push(answer);
    }
    if let Some(error) = answers.iter().find_map(|answer| answer.as_ref().err()) {
        tracing::warn!(%error, category = error.category(), of = answers.len(), "not all was written");
    }
    answers
}

/// A mistake of whoever writes: one answer is due for each.
fn unanswered() -> StoreError {
    StoreError::Bug(sqlx::Error::RowNotFound)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn at_fault() -> StoreError {
        StoreError::Corrupt("one of them".into())
    }

    fn away() -> StoreError {
        StoreError::Slow { seconds: 30 }
    }

    /// What becomes of five whose transaction fails with `first`, and which of them are tried alone.
    async fn five(
        first: StoreError,
        fails: impl Fn(u32) -> Option<StoreError>,
    ) -> (Vec<&'static str>, Vec<u32>) {
        let tried = RefCell::new(Vec::new());
        let answers = all_or_each((0..5).collect(), async { Err(first) }, |number: u32| {
            tried.borrow_mut().push(number);
            let written = fails(number).map_or(Ok(vec![number]), Err);
            async move { written }
        })
        .await;
        let words = answers.iter().map(|answer| answer.as_ref().map_or_else(|e| e.category(), |_| "ok"));
        (words.collect(), tried.into_inner())
    }

    #[tokio::test]
    async fn who_is_at_fault_suffers_alone_and_a_database_that_is_away_is_asked_no_more() {
        let (words, tried) = five(at_fault(), |number| (number == 1).then(at_fault)).await;
        assert_eq!((words.join(" "), tried.len()), ("ok corrupt ok ok ok".into(), 5));
        let (words, tried) = five(at_fault(), |number| (number == 1).then(away)).await;
        assert_eq!((words.join(" "), tried), ("ok away away away away".into(), vec![0, 1]));
        let (words, tried) = five(away(), |_| None).await;
        assert_eq!((words.join(" "), tried), ("away away away away away".into(), vec![]));
    }

    #[tokio::test]
    async fn nobody_is_left_without_an_answer() {
        let none = |_: u32| async { Ok(Vec::<u32>::new()) };
        for first in [Ok(Vec::new()), Ok(vec![7]), Err(at_fault())] {
            let answers = all_or_each(vec![1, 2], async { first }, none).await;
            assert_eq!(answers.len(), 2);
            assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(|e| e.category() == "bug")));
        }
    }
}
