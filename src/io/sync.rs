//! Wake-ups for one thread: by another of its tasks, and by another thread.

use super::{pulse, sys};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Wakes one waiting task of the same thread. A notification that nobody waits for is kept.
#[derive(Default)]
pub struct Notify {
    is_notified: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Notify {
    pub fn notify(&self) {
        if !self.is_notified.replace(true)
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }

    /// Clears a notification because the work that it was sent for is about to be done.
    pub fn clear(&self) {
        self.is_notified.set(false);
    }

    pub fn poll(&self, context: &Context<'_>) -> Poll<()> {
        if self.is_notified.take() {
            return Poll::Ready(());
        }
        self.waker.set(Some(context.waker().clone()));
        Poll::Pending
    }
}

/// Tasks of the same thread that wait for a condition to be checked again.
#[derive(Debug, Default)]
pub struct WaitQueue(RefCell<Vec<Waker>>);

impl WaitQueue {
    /// Waits until `is_true` holds; checks it now and after every [`WaitQueue::wake_all`].
    pub async fn wait_until(&self, mut is_true: impl FnMut() -> bool) {
        poll_fn(|context| {
            if is_true() {
                return Poll::Ready(());
            }
            self.0.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    pub fn wake_all(&self) {
        for waker in self.0.take() {
            waker.wake();
        }
    }
}

/// An eventfd that a monoio task waits on. One read is always in progress while it waits, and stays
/// in progress when the wait ends for another reason: dropping it would cost a cancel.
pub struct EventFd {
    file: Rc<monoio::fs::File>,
    read: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl EventFd {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = Rc::new(monoio::fs::File::from_std(fd.into())?);
        Ok(Self { file, read: None })
    }

    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let file = &self.file;
        let read = self.read.get_or_insert_with(|| {
            let file = Rc::clone(file);
            Box::pin(async move {
                let (result, _) = file.read_at(vec![0u8; 8], 0).await;
                debug_assert!(result.is_ok(), "{result:?}");
            })
        });
        let poll = read.as_mut().poll(context);
        if poll.is_ready() {
            self.read = None;
        }
        poll
    }

    pub async fn wait(&mut self) {
        poll_fn(|context| self.poll(context)).await;
    }
}

/// Interval after which a yielding task waits for the executor's next look at its ring.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// Waits for the executor's next look at its ring: a read of a pipe without a writer completes with
/// it.
#[derive(Clone)]
struct Look {
    pipe: Rc<monoio::fs::File>,
    last: Rc<Cell<Instant>>,
}

thread_local! {
    static LOOK: RefCell<Option<Look>> = const { RefCell::new(None) };
}

/// Makes [`yield_now`] ensure from here on that the calling thread's executor looks at its ring.
/// The executor looks after twice as many turns as tasks are ready: with 48 of them, a task that
/// always yields has dozens of turns between two looks, and HTTP requests wait as long.
pub fn look_at_ring() -> io::Result<()> {
    let (pipe, _) = io::pipe()?;
    let file = std::fs::File::from(OwnedFd::from(pipe));
    let pipe = Rc::new(monoio::fs::File::from_std(file)?);
    LOOK.set(Some(Look { pipe, last: Rc::new(Cell::new(Instant::now())) }));
    Ok(())
}

/// Lets every other ready task run first, and the executor look for completions.
///
/// The executor puts a task that wakes itself at the front of its queue, so such a task yields to
/// nobody. A new task goes to the end of the queue, and the one that waits for it behind that.
pub async fn yield_now() {
    let is_due = |look: &&Look| look.last.get().elapsed() >= LOOK_EVERY;
    let look = LOOK.with_borrow(|look| look.as_ref().filter(is_due).cloned());
    let Some(Look { pipe, last }) = look else { return monoio::spawn(async {}).await };
    let (result, _) = pipe.read_at(vec![0u8; 1], 0).await;
    debug_assert!(matches!(result, Ok(0)), "{result:?}");
    last.set(Instant::now());
}

thread_local! {
    /// Sleeping tasks of this thread, with the time at which each may wake.
    static SLEEPERS: RefCell<Vec<(Instant, Waker)>> = const { RefCell::new(Vec::new()) };
}

/// Waits for `duration`, and then until the thread's next [`wake_sleepers`].
///
/// The executor looks at its own timers only when no task is ready. Under load that may be never.
pub async fn sleep(duration: Duration) {
    let until = Instant::now() + duration;
    poll_fn(|context| {
        if Instant::now() >= until {
            return Poll::Ready(());
        }
        SLEEPERS.with_borrow_mut(|sleepers| sleepers.push((until, context.waker().clone())));
        Poll::Pending
    })
    .await;
}

/// Returns the result of `work`, or `None` if it takes longer than [`sleep`] would.
pub async fn timeout<T>(duration: Duration, work: impl Future<Output = T>) -> Option<T> {
    let (mut work, mut over) = (pin!(work), pin!(sleep(duration)));
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => over.as_mut().poll(context).map(|()| None),
    })
    .await
}

/// Wakes those of this thread whose sleep is over. Call it every few tens of milliseconds, also
/// from loops that yield without waiting. It also beats the thread's pulse.
pub fn wake_sleepers() {
    pulse::beat();
    let now = Instant::now();
    let due = SLEEPERS.with_borrow_mut(|sleepers| {
        sleepers.extract_if(.., |(until, _)| *until <= now).collect::<Vec<_>>()
    });
    due.into_iter().for_each(|(_, waker)| waker.wake());
}

/// Returns a second descriptor for the same eventfd.
pub fn duplicate(fd: &OwnedFd) -> io::Result<OwnedFd> {
    fd.try_clone()
}

/// Raises `fd`; works on any thread that has it in its table.
pub fn raise(fd: &OwnedFd) {
    sys::wake(fd);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn run(test: impl Future<Output = ()>) {
        let mut builder = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new();
        builder = builder.with_entries(16);
        builder.build().unwrap().block_on(test);
    }

    /// Of 48 tasks that read at once, each used to have one step per look while the yielding task
    /// had 24 turns.
    #[test]
    fn who_yields_for_long_lets_completions_in() {
        const STEPS: usize = 5;
        let (turns, left) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(48)));
        let busy = Rc::clone(&turns);
        run(async move {
            look_at_ring().unwrap();
            for _ in 0..left.get() {
                let left = Rc::clone(&left);
                let zero = std::fs::File::open("/dev/zero").unwrap();
                let zero = monoio::fs::File::from_std(zero).unwrap();
                monoio::spawn(async move {
                    for _ in 0..STEPS {
                        zero.read_at(vec![0u8; 8], 0).await.0.unwrap();
                    }
                    left.set(left.get() - 1);
                });
            }
            let working = monoio::spawn(async move {
                while left.get() > 0 {
                    busy.set(busy.get() + 1);
                    let began = Instant::now();
                    while began.elapsed() < LOOK_EVERY {}
                    yield_now().await;
                }
            });
            working.await;
        });
        assert!(turns.get() <= 4 * STEPS, "{} turns for {STEPS} steps", turns.get());
    }

    #[test]
    fn who_yields_runs_behind_all_that_are_ready() {
        let steps = Rc::new(RefCell::new(Vec::new()));
        run(async {
            let tasks = ["a", "b"].map(|name| {
                let steps = Rc::clone(&steps);
                monoio::spawn(async move {
                    for step in 0..3 {
                        steps.borrow_mut().push((name, step));
                        yield_now().await;
                    }
                })
            });
            for task in tasks {
                task.await;
            }
        });
        assert_eq!(*steps.borrow(), [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]);
    }

    #[test]
    fn completions_are_seen_while_a_task_does_nothing_but_yield() {
        run(async {
            let fd = sys::eventfd().unwrap();
            let mut eventfd = EventFd::new(duplicate(&fd).unwrap()).unwrap();
            let heard = Rc::new(Cell::new(false));
            let hearing = Rc::clone(&heard);
            monoio::spawn(async move {
                eventfd.wait().await;
                hearing.set(true);
            });
            yield_now().await;
            raise(&fd);
            let mut turns = 0;
            while !heard.get() {
                assert!(turns < 1_000_000, "nobody heard it");
                yield_now().await;
                turns += 1;
            }
        });
    }

    #[test]
    fn sleepers_wake_while_a_task_does_nothing_but_yield() {
        run(async {
            let ms = Duration::from_millis;
            let slept = monoio::spawn(async move { timeout(ms(5), sleep(ms(60_000))).await });
            let over = Rc::new(Cell::new(false));
            let waiting = Rc::clone(&over);
            monoio::spawn(async move {
                assert_eq!(slept.await, None);
                assert_eq!(timeout(ms(60_000), async { 7 }).await, Some(7));
                waiting.set(true);
            });
            let began = Instant::now();
            while !over.get() {
                assert!(began.elapsed() < ms(60_000), "nobody woke it");
                wake_sleepers();
                yield_now().await;
            }
            assert!(began.elapsed() >= ms(5));
        });
    }
}
