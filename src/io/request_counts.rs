//! Counts a worker's HTTP requests; runs of requests that were read together and got the same
//! status are counted in one step.

use crate::state::counters::HttpCounters;
use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

pub struct RequestCounts {
    counters: Arc<HttpCounters>,
    /// Answered and not counted yet.
    last: Cell<Option<Answered>>,
}

/// A run of requests that were read together and got the same answer.
#[derive(Debug, Clone, Copy)]
struct Answered {
    url: usize,
    status: u16,
    started: Instant,
    requests: u64,
}

impl RequestCounts {
    pub fn new(counters: Arc<HttpCounters>) -> Self {
        Self { counters, last: Cell::new(None) }
    }

    /// Counts a request, either with the next one that differs or at [`RequestCounts::flush`].
    pub fn add(&self, path: &str, status: u16, started: Instant) {
        tracing::trace!(path, status, "answered a request");
        let url = HttpCounters::url_of(path);
        let requests = match self.last.take() {
            Some(last) if (last.url, last.status, last.started) == (url, status, started) => {
                last.requests + 1
            }
            Some(last) => {
                self.count(&last);
                1
            }
            None => 1,
        };
        self.last.set(Some(Answered { url, status, started, requests }));
    }

    /// Counts what is pending. Call it when answers are written.
    pub fn flush(&self) {
        if let Some(last) = self.last.take() {
            self.count(&last);
        }
    }

    fn count(&self, answered: &Answered) {
        let &Answered { url, status, started, requests } = answered;
        let duration_us = started.elapsed().as_micros() as u64;
        self.counters.count(url, status, duration_us, requests);
    }
}
