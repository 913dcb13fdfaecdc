//! How long a ready task waits until its thread comes round to it again.
//!
//! A *round* is one turn of every ready task of the thread. It begins with the first of them and
//! ends after the last; then the executor looks at its ring again. Its length is the pause: an
//! event that arrives during it waits for up to that long, and then for its own turn. While other
//! threads use the core, the scheduler causes most of a long round; the thread's own part is the
//! CPU time that it used.
//!
//! Tasks started by [`spawn`] open a round when they are polled. A woken task queues behind all
//! others that are ready: the task of [`observe`] is woken by the first task of a round and so ends
//! it.

use super::sync::{Notify, yield_now};
use super::{clock, pulse, sys};
use crate::state::counters::{Counters, Pauses};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

/// Length from which a pause is examined: its CPU time is read, and it may be the longest of its
/// minute. A shorter one counts entirely as the thread's own.
const LONG_NS: u64 = 500_000;
/// Time in rounds after which the CPU time is read again. The own part of a long round is
/// overstated by at most this, plus what the executor itself used. The system call takes 0.3 us; at
/// this rate its cost cannot be measured.
const READ_EVERY_NS: u64 = 200_000;

/// On shared cores, length of a round after which the thread lets the others run. The scheduler
/// would end its turn only at one of its ticks, up to 4 ms later.
const LONG_ON_SHARED_CORE_NS: u64 = 100_000;

/// Pieces of work that HTTP connections may do in one round, about a millisecond; the rest waits
/// for the next round. A connection with input costs a turn of its task and several
/// system calls besides.
const PIECES_PER_ROUND: u32 = 512;
pub const REQUEST: u32 = 1;
pub const READ: u32 = 8;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Rounds>>> = const { RefCell::new(None) };
}

/// The rounds of one thread.
struct Rounds {
    counters: Arc<Counters>,
    /// When the current round began; `None`: no round has begun.
    began: Cell<Option<Instant>>,
    has_begun: Notify,
    /// Whether other such threads run on the same core.
    shares_core: bool,
    /// What is left of [`PIECES_PER_ROUND`].
    pieces: Cell<u32>,
    /// The thread's CPU time when it was last read, and the time spent in rounds since then.
    cpu_ns: Cell<u64>,
    since_ns: Cell<u64>,
}

impl Rounds {
    #[inline]
    fn begin(&self) {
        if self.began.get().is_none() {
            self.began.set(Some(Instant::now()));
            pulse::begin_round();
            self.has_begun.notify();
        }
    }

    fn end(&self) {
        let Some(began) = self.began.take() else { return };
        pulse::end_round();
        self.pieces.set(PIECES_PER_ROUND);
        let ns = began.elapsed().as_nanos() as u64;
        let own_ns = self.own_part(ns);
        let Counters { pauses, own_pauses, .. } = &*self.counters;
        pauses.observe(ns);
        own_pauses.observe(own_ns);
        if ns >= LONG_NS {
            let now = clock::monotonic();
            let note = |pauses: &Pauses, ns| pauses.note_longest(ns, now);
            note(pauses, ns);
            note(own_pauses, own_ns);
        }
        if self.shares_core && ns >= LONG_ON_SHARED_CORE_NS {
            thread::yield_now();
        }
    }

    /// Returns the thread's own part of a round of length `ns` that ends now: at most the processor
    /// time since the last reading.
    fn own_part(&self, ns: u64) -> u64 {
        let since_ns = self.since_ns.get() + ns;
        if ns < LONG_NS && since_ns < READ_EVERY_NS {
            self.since_ns.set(since_ns);
            return ns;
        }
        self.since_ns.set(0);
        let cpu_ns = sys::own_cpu_ns();
        ns.min(cpu_ns.saturating_sub(self.cpu_ns.replace(cpu_ns)))
    }
}

/// Observes the rounds of the calling thread from here on, for as long as it lives. Must be called
/// once, within its executor.
pub fn observe(counters: Arc<Counters>, shares_core: bool) {
    let rounds = Rc::new(Rounds {
        counters,
        began: Cell::new(None),
        has_begun: Notify::default(),
        shares_core,
        pieces: Cell::new(PIECES_PER_ROUND),
        cpu_ns: Cell::new(sys::own_cpu_ns()),
        since_ns: Cell::new(0),
    });
    CURRENT.set(Some(Rc::clone(&rounds)));
    monoio::spawn(async move {
        loop {
            poll_fn(|context| rounds.has_begun.poll(context)).await;
            rounds.end();
        }
    });
}

/// Starts a task on the calling thread. If the thread is observed, its turns count.
pub fn spawn<T: 'static>(task: impl Future<Output = T> + 'static) -> monoio::task::JoinHandle<T> {
    let Some(rounds) = CURRENT.with_borrow(Clone::clone) else { return monoio::spawn(task) };
    let mut task = Box::pin(task);
    monoio::spawn(poll_fn(move |context| {
        rounds.begin();
        task.as_mut().poll(context)
    }))
}

/// Waits until the round has room for this number of pieces, in the order in which tasks ask. Call
/// it in tasks of which very many may be ready at once. On a thread that is not observed it does
/// not wait.
pub async fn take_turn(pieces: u32) {
    while !has_turn(pieces) {
        yield_now().await;
    }
}

fn has_turn(pieces: u32) -> bool {
    CURRENT.with_borrow(|rounds| {
        let Some(rounds) = rounds else { return true };
        let left = rounds.pieces.get().checked_sub(pieces);
        left.inspect(|&left| rounds.pieces.set(left)).is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn run(test: impl Future<Output = ()>) {
        let mut builder = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new();
        builder = builder.with_entries(16);
        builder.enable_timer().build().unwrap().block_on(test);
    }

    fn spend(cpu: Duration) {
        let until_ns = sys::own_cpu_ns() + cpu.as_nanos() as u64;
        while sys::own_cpu_ns() < until_ns {}
    }

    fn longest_ms(pauses: &Pauses) -> u64 {
        pauses.longest_us(clock::monotonic()) / 1_000
    }

    /// Returns the number of pauses longer than half a millisecond.
    fn long(pauses: &Pauses) -> u64 {
        pauses.read().0[3..].iter().sum()
    }

    #[test]
    fn a_round_is_the_sum_of_its_tasks_and_sleeping_is_none_of_it() {
        let counters = Arc::new(Counters::default());
        let counted = Arc::clone(&counters);
        run(async move {
            observe(counted, false);
            let work = || async { spend(Duration::from_millis(4)) };
            let both = [spawn(work()), spawn(work())];
            for task in both {
                task.await;
            }
            yield_now().await;
            monoio::time::sleep(Duration::from_millis(30)).await;
            spawn(work()).await;
            yield_now().await;
        });
        let Counters { pauses, own_pauses, .. } = &*counters;
        assert_eq!((long(pauses), long(own_pauses)), (2, 2), "{pauses:?}");
        assert!((8..30).contains(&longest_ms(own_pauses)), "{own_pauses:?}");
    }

    #[test]
    fn what_others_did_with_the_core_is_not_the_threads_own() {
        let counters = Arc::new(Counters::default());
        let counted = Arc::clone(&counters);
        run(async move {
            observe(counted, false);
            spawn(async { thread::sleep(Duration::from_millis(20)) }).await;
            yield_now().await;
        });
        let Counters { pauses, own_pauses, .. } = &*counters;
        assert!(longest_ms(pauses) >= 20, "{pauses:?}");
        assert!(longest_ms(own_pauses) < 10, "{own_pauses:?}");
    }

    #[test]
    fn of_very_many_tasks_some_wait_for_the_next_round_and_all_have_their_turn() {
        const TASKS: usize = 200;
        let counters = Arc::new(Counters::default());
        let counted = Arc::clone(&counters);
        let order = Rc::new(RefCell::new(Vec::new()));
        let done = Rc::clone(&order);
        run(async move {
            take_turn(PIECES_PER_ROUND + 1).await; // not observed
            observe(counted, false);
            let tasks: Vec<_> = (0..TASKS)
                .map(|number| {
                    let order = Rc::clone(&done);
                    spawn(async move {
                        take_turn(READ).await;
                        order.borrow_mut().push(number);
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
            yield_now().await;
        });
        assert_eq!(*order.borrow(), (0..TASKS).collect::<Vec<_>>());
        let rounds: u64 = counters.pauses.read().0.iter().sum();
        let needed = (TASKS as u64 * u64::from(READ)).div_ceil(u64::from(PIECES_PER_ROUND));
        assert!((needed..3 * needed).contains(&rounds), "{rounds} rounds for {needed}");
    }
}
