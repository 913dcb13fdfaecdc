//! Time-driven work of a worker: deadlines, stalls, and its end.

use super::WorkerContext;
use crate::io::clock;
use crate::io::sync::{Notify, wake_sleepers};
use crate::state::drain::{DrainStep, DrainTimes, DrainingWorker};
use crate::types::{MonotonicMs, Now, WallMs};
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

/// Interval between checks of the deadlines while something waits for one.
const TICK_MS: u64 = 50;
/// The same while the node drains: its phases follow each other soon, and closes are even.
const DRAIN_TICK_MS: u64 = 10;
/// Part of `--drain_ms` that is left over for the end of the process.
const END_MS: u64 = 200;
/// Delay of a tick from which the thread counts as not having run: stopped, or kept from its core.
/// The excess does not count towards the deadlines of peers.
const STALL_MS: u64 = TICK_MS;
/// Minimum length of a stall that is logged.
const LOGGED_STALL_MS: u64 = 1_000;
/// Difference between the two clocks' progress from which the wall clock counts as having been set.
const CLOCK_STEP_MS: i64 = 500;

/// When the next tick is due.
pub(super) struct Schedule {
    /// Time between the last tick and the next one.
    after_ms: Cell<u64>,
    /// The same, as planned by the last tick.
    planned_ms: Cell<u64>,
    /// Raised when the next tick is due earlier than planned.
    changed: Notify,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            after_ms: Cell::new(TICK_MS),
            planned_ms: Cell::new(TICK_MS),
            changed: Notify::default(),
        }
    }
}

impl WorkerContext {
    /// Ticks for as long as the worker lives. With many workers, mostly these ticks wake an idle
    /// one: if nothing waits for a deadline, it sleeps for up to 250 ms.
    pub(in crate::io) async fn keep_time(&self) {
        loop {
            let after_ms = self.schedule.after_ms.get();
            let mut sleep = pin!(monoio::time::sleep(Duration::from_millis(after_ms)));
            poll_fn(|context| match sleep.as_mut().poll(context) {
                Poll::Pending if after_ms > TICK_MS => self.schedule.changed.poll(context),
                poll => poll,
            })
            .await;
            self.tick(clock::now());
        }
    }

    /// Makes sure that deadlines are checked often enough for what happened since the last tick.
    pub(in crate::io) fn stir(&self) {
        if self.schedule.after_ms.get() > TICK_MS && !self.is_calm() {
            self.schedule.after_ms.set(TICK_MS);
            self.schedule.changed.notify();
        }
    }

    /// Returns whether only the sweep waits for a deadline, and HTTP connections for a later one
    /// than the next tick.
    fn is_calm(&self) -> bool {
        let calm_ms = self.ws_server.borrow().worker.calm_ms();
        let times = self.active.borrow().settings.times;
        // A connection's next deadline is further away than this, so a tick comes before it.
        let shortest_ms = times.request_timeout_ms.min(times.keep_alive_ms).min(times.linger_ms);
        let http = self.http.borrow();
        let is_http_calm = http.count() == 0
            || shortest_ms > calm_ms && http.is_calm(self.last_tick.get().monotonic, 2 * calm_ms);
        is_http_calm
            && self.transport.is_calm()
            && !self.shared.is_draining()
            && !self.reclaim.is_pending()
            && self.ws_server.borrow().is_calm()
    }

    fn plan_tick(&self) {
        let calm_ms = self.ws_server.borrow().worker.calm_ms();
        let after_ms = match self.is_calm() && calm_ms > TICK_MS {
            _ if self.shared.is_draining() => DRAIN_TICK_MS,
            true => self.until_own_turn_ms(calm_ms),
            false => TICK_MS,
        };
        self.schedule.after_ms.set(after_ms);
        self.schedule.planned_ms.set(after_ms);
    }

    /// Returns the time until this worker's tick. The workers' ticks are spread over `calm_ms`: if
    /// there are more workers than cores, simultaneous ticks would delay each other.
    fn until_own_turn_ms(&self, calm_ms: u64) -> u64 {
        let workers = self.shared.http_counters.len().max(1) as u64;
        let turn_ms = calm_ms * self.index as u64 / workers;
        let now_ms = self.last_tick.get().monotonic.value();
        calm_ms - now_ms.wrapping_sub(turn_ms) % calm_ms
    }

    /// Checks the deadlines, if that is due. The executor's timers starve while some task is always
    /// ready, so loops that yield call this too.
    pub(in crate::io) fn tick(&self, now: Now) {
        let elapsed_ms = now.monotonic.since(self.last_tick.get().monotonic);
        if elapsed_ms < self.schedule.after_ms.get() {
            return;
        }
        wake_sleepers();
        let last_tick = self.last_tick.replace(now);
        warn_of_clock_step(now.wall, last_tick.wall + elapsed_ms);
        let stall_ms = elapsed_ms.saturating_sub(self.schedule.planned_ms.get() + STALL_MS);
        if stall_ms > 0 {
            self.handle_stall(stall_ms);
        }
        self.take_config(now);
        self.ws_server.borrow_mut().handle_tick(now);
        self.http.borrow_mut().handle_tick(now.monotonic);
        let body_bytes = self.http.borrow().body_bytes();
        self.shared.http_counters[self.index].body_bytes.set(body_bytes as u64);
        self.transport.handle_tick();
        if self.shared.is_draining() {
            self.drain(now.monotonic);
        }
        self.tend_memory(now);
        self.plan_tick();
        if self.traces.are_on() || self.ws_server.borrow_mut().has_work() {
            self.work.notify();
        }
    }

    /// Moves deadlines by a stall: a peer is never blamed for this node's slowness.
    fn handle_stall(&self, stall_ms: u64) {
        if stall_ms >= LOGGED_STALL_MS {
            tracing::warn!(
                stall_ms,
                "a worker did not run for a while; its clients' deadlines are postponed by that \
                 time"
            );
        }
        self.counters.stalled_ms.add(stall_ms);
        self.ws_server.borrow_mut().handle_stall(stall_ms);
        self.http.borrow_mut().handle_stall(stall_ms);
    }

    /// Continues the drain. Requests that arrive in the meantime are answered but not waited for.
    fn drain(&self, now: MonotonicMs) {
        loop {
            let node = &self.shared.drain;
            let step = self.drain.borrow_mut().step(now, node, &mut Draining(self));
            match step {
                DrainStep::Refuse => {
                    self.shared.refuse();
                    self.ws_server.borrow_mut().close_port(now);
                    self.http_port.close();
                    let DrainTimes { window_ms, linger_ms, .. } = Draining(self).times();
                    let mut http = self.http.borrow_mut();
                    http.begin_drain(now, window_ms - window_ms / 4, now + linger_ms);
                }
                DrainStep::CloseClients { left, may_wait, spread_ms } => {
                    return self.ws_server.borrow_mut().close_clients(left, may_wait, spread_ms);
                }
                DrainStep::CloseServers { spread_ms } => {
                    self.ws_server.borrow_mut().close_servers(spread_ms);
                }
                DrainStep::Wait => return,
                DrainStep::End => return self.ended.notify(),
            }
        }
    }
}

/// A worker as its drain sees it.
struct Draining<'a>(&'a WorkerContext);

impl DrainingWorker for Draining<'_> {
    fn times(&self) -> DrainTimes {
        let times = self.0.active.borrow().settings.times;
        DrainTimes {
            delay_ms: times.drain_delay_ms,
            window_ms: times.drain_ms.saturating_sub(END_MS),
            linger_ms: times.linger_ms,
        }
    }

    fn awaits_answer(&self) -> bool {
        self.0.forward_requests();
        self.0.transport.awaits_answer() || self.0.transport.has_late()
    }

    fn has_delivered(&mut self) -> bool {
        let instant = Instant::now();
        while self.0.receive_one(instant) {}
        !self.0.ws_server.borrow().worker.is_matching()
    }

    fn clients(&self) -> usize {
        self.0.ws_server.borrow().worker.clients()
    }

    fn servers(&self) -> usize {
        self.0.ws_server.borrow().worker.servers()
    }

    fn node_connections(&self) -> usize {
        self.0.shared.connections()
    }

    fn is_empty(&self) -> bool {
        let now = self.0.last_tick.get().monotonic;
        let ws_server = self.0.ws_server.borrow();
        ws_server.connections() == 0
            && !ws_server.has_newcomers(now)
            && self.0.http.borrow().is_quiet(now)
            && self.0.transport.has_announced_leave()
    }
}

/// Logs a step of the wall clock. It moves no deadline, but clients' sessions end, and signatures
/// and messages expire, by the new time.
fn warn_of_clock_step(wall: WallMs, expected: WallMs) {
    let step_ms = wall.value() as i64 - expected.value() as i64;
    if step_ms.abs() >= CLOCK_STEP_MS {
        tracing::warn!(step_ms, "the system clock was set");
    }
}
