//! The pushes to many, shared by all threads: the receivers of each, and its outcome.
//!
//! The driver appends a push before it sends it, so a thread that receives one finds it here. It
//! settles pushes in the same order, each once its deliveries must have arrived.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::plan::Selector;

/// A push to many.
#[derive(Clone)]
pub struct Bulk {
    /// When its request was written: connections welcomed before must receive it.
    pub sent_ns: u64,
    pub phase: u16,
    /// `None`: every connection.
    pub selector: Option<Arc<Selector>>,
}

/// The server's response to a push.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// 200.
    Accepted,
    /// It was not accepted and must reach nobody: any 4xx, and 503.
    Refused,
    /// It may have been delivered: 504, or the HTTP connection was lost.
    #[default]
    Unknown,
}

impl Answer {
    pub fn of(status: u16) -> Answer {
        match status {
            200 => Answer::Accepted,
            400..500 | 503 => Answer::Refused,
            _ => Answer::Unknown,
        }
    }
}

#[derive(Default)]
pub struct Ledger {
    sent: AtomicU32,
    settled: AtomicU32,
    bulk: Mutex<Vec<Bulk>>,
    answers: Mutex<Vec<Answer>>,
}

impl Ledger {
    /// Appends a push and returns its number.
    pub fn send(&self, bulk: Bulk) -> u32 {
        let mut list = locked(&self.bulk);
        list.push(bulk);
        let count = list.len() as u32;
        self.sent.store(count, Ordering::Release);
        count - 1
    }

    /// Settles the next push.
    pub fn settle(&self, answer: Answer) {
        let mut list = locked(&self.answers);
        list.push(answer);
        self.settled.store(list.len() as u32, Ordering::Release);
    }

    pub fn sent(&self) -> u32 {
        self.sent.load(Ordering::Acquire)
    }

    pub fn settled(&self) -> u32 {
        self.settled.load(Ordering::Acquire)
    }

    /// Updates a thread's copy.
    pub fn copy_sent(&self, copy: &mut Vec<Bulk>) {
        if copy.len() < self.sent() as usize {
            let list = locked(&self.bulk);
            copy.extend_from_slice(&list[copy.len()..]);
        }
    }

    pub fn answer(&self, number: u32) -> Answer {
        locked(&self.answers).get(number as usize).copied().unwrap_or_default()
    }
}

/// Ignores poisoning: a thread that panicked ends the run anyway.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
