//! The counts of one thread in one phase.

use hdrhistogram::Histogram;

/// A histogram that allocates only when something is recorded: a thread has several for each phase.
#[derive(Default)]
pub struct Times(Option<Box<Histogram<u64>>>);

impl Times {
    pub fn record_n(&mut self, ns: u64, count: u64) {
        self.0.get_or_insert_with(|| Box::new(new_histogram())).saturating_record_n(ns, count);
    }

    pub fn record(&mut self, ns: u64) {
        self.record_n(ns, 1);
    }

    pub fn merge(&mut self, other: &Times) {
        if let Some(other) = &other.0 {
            self.add(other);
        }
    }

    /// Adds a histogram of at most ten minutes.
    pub fn add(&mut self, other: &Histogram<u64>) {
        if !other.is_empty() {
            // It fails only for values above the bounds.
            let _ = self.0.get_or_insert_with(|| Box::new(new_histogram())).add(other);
        }
    }

    /// Returns the histogram, if anything was recorded.
    pub fn get(&self) -> Option<&Histogram<u64>> {
        self.0.as_deref()
    }
}

/// Up to ten minutes, exact to two digits: 40 KB.
fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 600_000_000_000, 2)
        .unwrap_or_else(|_| unreachable!("the bounds are constants and valid"))
}

#[derive(Default)]
pub struct PhaseStats {
    /// Connections welcomed for the first time.
    pub opened: u64,
    /// Connections welcomed again.
    pub reopened: u64,
    /// Attempts without a welcome.
    pub refused: u64,
    pub cut: u64,
    pub churned: u64,
    /// Open connections that the server ended.
    pub dropped: u64,
    pub last_welcome_ns: u64,
    /// TCP connect to welcome.
    pub connect: Times,
    /// From the end of a connection to the welcome of its successor.
    pub back: Times,
    pub project: Times,
    pub tagged: Times,
    pub unicast: Times,
    pub checks: Checks,
}

/// Results of the message checks. All but `deliveries` and `undecided` must be 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    pub deliveries: u64,
    pub lost: u64,
    pub doubled: u64,
    pub out_of_order: u64,
    /// They arrived at a connection that they were not for.
    pub misdelivered: u64,
    /// They arrived although the server had reported that it did not accept them.
    pub refused_but_delivered: u64,
    /// Possibly lost, but unknowable: their connection ended before they had to arrive.
    pub undecided: u64,
}

impl Checks {
    pub fn add(&mut self, other: Checks) {
        self.deliveries += other.deliveries;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.out_of_order += other.out_of_order;
        self.misdelivered += other.misdelivered;
        self.refused_but_delivered += other.refused_but_delivered;
        self.undecided += other.undecided;
    }
}

impl PhaseStats {
    pub fn merge(&mut self, other: &PhaseStats) {
        self.opened += other.opened;
        self.reopened += other.reopened;
        self.refused += other.refused;
        self.cut += other.cut;
        self.churned += other.churned;
        self.dropped += other.dropped;
        self.last_welcome_ns = self.last_welcome_ns.max(other.last_welcome_ns);
        for (into, from) in [
            (&mut self.connect, &other.connect),
            (&mut self.back, &other.back),
            (&mut self.project, &other.project),
            (&mut self.tagged, &other.tagged),
            (&mut self.unicast, &other.unicast),
        ] {
            into.merge(from);
        }
        self.checks.add(other.checks);
    }
}
