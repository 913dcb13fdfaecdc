//! Work that would keep the ops thread from its other connections, on a thread of its own.

use crate::io::{sys, threads};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::Duration;

/// Interval at which a job's completion and its client's presence are checked.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Work on a separate thread, which shares the ops thread's descriptor table.
pub struct Job<T> {
    result: Receiver<T>,
    is_cancelled: Arc<AtomicBool>,
}

impl<T: Send + 'static> Job<T> {
    /// `name`: the thread's.
    pub fn start(
        name: &str,
        work: impl FnOnce(&AtomicBool) -> T + Send + 'static,
    ) -> io::Result<Self> {
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let (sender, result) = mpsc::channel();
        let seen = Arc::clone(&is_cancelled);
        threads::spawn(name, move || {
            // If nobody waits any more, the result is discarded.
            let _ = sender.send(work(&seen));
        })?;
        Ok(Self { result, is_cancelled })
    }

    /// Waits for the work to end, and cancels it if the client disconnects. `None`: it panicked.
    pub async fn result(self, connection: BorrowedFd<'_>) -> Option<T> {
        loop {
            match self.result.try_recv() {
                Ok(result) => return Some(result),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => monoio::time::sleep(LOOK_EVERY).await,
            }
            // Like Go, treats the end of the client's stream as a disconnect.
            if sys::has_peer_ended(connection) {
                self.is_cancelled.store(true, Relaxed);
            }
        }
    }
}
