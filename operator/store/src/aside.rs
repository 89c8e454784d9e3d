//! Work that takes a thread for a while.

use tokio::task::JoinError;

/// Does work of many milliseconds off the threads that serve requests. `broken` says what it is that it did not end.
pub async fn aside<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
    broken: impl FnOnce(JoinError) -> E,
) -> Result<T, E> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(broken(error)))
}
