//! The workers of a broker under test: they accept what it gives them, and count it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use ws_cluster::io::broker::driver::Host;
use ws_cluster::io::broker::threaded::{self, BrokerEnd, ToWorker, WorkerEnd};
use ws_cluster::state::broker::{Outcome, Pusher, Sink};
use ws_cluster::state::counters::BrokerCounters;
use ws_cluster::state::projects::ProjectId;
use ws_cluster::state::subscriptions::{Interest, WorkerEvent};
use ws_cluster::wire::envelope::Envelope;

pub trait Workers {
    fn with_sink(&mut self, act: &mut dyn FnMut(&mut dyn Sink));
    /// Empties the rings. On a node the workers' threads do that.
    fn drain(&mut self);
    fn delivered(&self) -> u64;
}

/// One worker, on the broker's own thread: nothing is handed over, and nothing is done but
/// counting.
#[derive(Default)]
pub struct Counting {
    delivered: u64,
    /// Makes sure that the message is read.
    bytes: u64,
}

impl Workers for Counting {
    fn with_sink(&mut self, act: &mut dyn FnMut(&mut dyn Sink)) {
        act(self);
    }

    fn drain(&mut self) {}

    fn delivered(&self) -> u64 {
        std::hint::black_box(self.bytes);
        self.delivered
    }
}

impl Sink for Counting {
    fn deliver(&mut self, _workers: u64, _envelope: &Envelope<'_>, bytes: &[u8]) {
        self.delivered += 1;
        self.bytes += bytes.len() as u64;
    }

    fn relay(&mut self, _workers: u64, _project: ProjectId, _parcel: &[u8]) {}

    fn event(&mut self, _worker: usize, _notice: WorkerEvent) {}

    fn answer(&mut self, _pusher: Pusher, _outcome: Outcome) {}

    fn ready(&mut self, _worker: usize, _interest: &Interest) {}

    fn refuse(&mut self, _worker: usize, _interest: &Interest) {}

    fn canary(&mut self) {}

    fn has_room(&self) -> bool {
        true
    }
}

/// The server's own rings, to workers that are awake.
pub struct Rings {
    broker_end: BrokerEnd,
    ports: Vec<WorkerEnd>,
    delivered: u64,
}

impl Rings {
    pub fn new(workers: usize, counters: &Arc<BrokerCounters>) -> io::Result<Self> {
        let (ports, broker_end) = threaded::ends(workers, counters)?;
        Ok(Self { broker_end, ports, delivered: 0 })
    }
}

impl Workers for Rings {
    fn with_sink(&mut self, act: &mut dyn FnMut(&mut dyn Sink)) {
        act(&mut self.broker_end.sink(Instant::now()));
        self.broker_end.wake();
    }

    fn drain(&mut self) {
        for port in &mut self.ports {
            while let Some(word) = port.receive() {
                self.delivered += u64::from(matches!(word, ToWorker::Deliver(_)));
            }
        }
    }

    fn delivered(&self) -> u64 {
        self.delivered
    }
}
