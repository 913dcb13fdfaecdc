//! Drives the broker: keeps its two links to Redis open and advances its time.

mod links;

use super::connect;
use crate::io::clock;
use crate::io::shared::Shared;
use crate::io::sync::{Notify, WaitQueue, sleep, yield_now};
use crate::io::sys;
use crate::state::broker::{Broker, Event, Handled, LinkError, LinkName, Pusher, Sink, SizeLimit};
use crate::state::counters::BrokerCounters;
use crate::state::subscriptions::BrokerRequest;
use crate::types::{MonotonicMs, NodeId, Now, Routing};
use crate::wire::envelope::{self, Envelope};
use crate::wire::redis_url::RedisUrl;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// At or above this number of messages that wait for Redis's answer, the thread stays awake until
/// their number has not changed for `AWAKE_FOR`.
///
/// The answer usually comes within a few tens of microseconds. Sleeping for that time would cost
/// the other side an interrupt, and this one a core that has cooled down in the meantime.
const AWAKE_MESSAGES: usize = 32;
const AWAKE_FOR: Duration = Duration::from_micros(50);
/// Interval between checks of the broker's deadlines.
pub(super) const TICK_MS: u64 = 50;
/// Delay after the first failed attempt; it doubles with each further one. Half of it is random, so
/// that the nodes of a cluster do not come back all at once.
const BACKOFF_MS: u64 = 100;
const MAX_BACKOFF_MS: u64 = 500;
/// Minimum interval between warnings about attempts that fail for the same reason as the one
/// before, and about any other repeated trouble.
const WARNING_EVERY: Duration = Duration::from_secs(10);
/// Gaps logged one by one after a reconnect; of the rest, the sum is logged.
const GAPS_LOGGED: usize = 20;
/// Maximum number of refused channels that are named in the log.
const REFUSED_LOGGED: usize = 100;

/// The thread that hosts a broker: one of its own, or that of the only worker.
pub trait Host: 'static {
    /// Returns what takes the output of one call of the broker, which was made at `at`.
    fn sink(&self, at: Instant) -> impl Sink + '_;
    /// Passes to the broker what the workers have sent up to now.
    /// `take_config`: to be called before each request, whose worker may have taken another
    /// configuration.
    fn receive(&self, broker: &mut Broker, now: MonotonicMs, take_config: &dyn Fn(&mut Broker));
    /// Wakes the receivers of what was put in the sink.
    fn wake(&self);
    /// Returns whether the thread may wait actively because nobody else needs its core.
    fn may_stay_awake(&self) -> bool;
    /// Checks deadlines. Code that waits actively must call it repeatedly: the executor does not
    /// look at its timers in the meantime.
    fn keep_time(&self);
    /// Returns when [`Sink::has_room`] may be true again.
    fn wait_for_room(&self) -> impl Future<Output = ()>;
}

/// A broker, its links and its host.
pub struct Driver<H> {
    broker: RefCell<Broker>,
    host: H,
    shared: Arc<Shared>,
    counters: Arc<BrokerCounters>,
    url: RedisUrl,
    /// The latest time passed to the broker, and the instant that it belongs to.
    last: Cell<MonotonicMs>,
    last_at: Cell<Instant>,
    /// Something is to be written, by link.
    outgoing: [Notify; 2],
    /// The tasks of the links are to end, or have ended: the reason, and how many are left.
    is_ending: Cell<bool>,
    error: RefCell<Option<LinkError>>,
    failed: Notify,
    tasks: Cell<usize>,
    task_ended: WaitQueue,
    gaps: RefCell<Gaps>,
    /// Refused channels that have been logged.
    refused: RefCell<HashSet<Box<[u8]>>>,
    /// When each kind of trouble was last logged.
    logged: RefCell<[Option<Instant>; 7]>,
    /// The generation of the configuration that the broker uses; 0: not checked yet.
    generation: Cell<u64>,
}

/// Gaps since the links came up: the first are logged one by one, the rest as a sum.
#[derive(Default)]
struct Gaps {
    logged: usize,
    unlogged: usize,
    messages: u64,
}

impl<H: Host> Driver<H> {
    pub fn new(broker: Broker, host: H, shared: Arc<Shared>, url: RedisUrl) -> Rc<Self> {
        let started = Instant::now();
        Rc::new(Self {
            broker: RefCell::new(broker),
            host,
            counters: Arc::clone(&shared.broker_counters),
            shared,
            url,
            last: Cell::new(clock::monotonic_at(started)),
            last_at: Cell::new(started),
            outgoing: Default::default(),
            is_ending: Cell::new(false),
            error: RefCell::default(),
            failed: Notify::default(),
            tasks: Cell::new(0),
            task_ended: WaitQueue::default(),
            gaps: RefCell::default(),
            refused: RefCell::default(),
            logged: RefCell::default(),
            generation: Cell::default(),
        })
    }

    pub(super) fn counters(&self) -> &BrokerCounters {
        &self.counters
    }

    pub(super) fn host(&self) -> &H {
        &self.host
    }

    /// Keeps the links open for as long as the node lives.
    pub async fn run(self: Rc<Self>) {
        let mut attempts = 0;
        let mut last_warning: Option<(LinkError, Instant)> = None;
        loop {
            let error = self.live_once().await;
            let was_ready = self.broker.borrow().is_ready();
            self.shared.queue.set_down(&error.to_string());
            {
                let mut broker = self.broker.borrow_mut();
                broker.handle_lost(&mut self.host.sink(Instant::now()));
                self.host.wake();
                self.log_events(&mut broker);
            }
            attempts = if was_ready { 0 } else { attempts + 1 };
            if was_ready {
                self.counters.losses.add(1);
            }
            let is_repeated = last_warning
                .as_ref()
                .is_some_and(|(last, at)| *last == error && at.elapsed() < WARNING_EVERY);
            if was_ready || !is_repeated {
                tracing::warn!(%error, "the queue is down: pushes get 503 until it is back");
                last_warning = Some((error, Instant::now()));
            }
            let backoff_ms = (BACKOFF_MS << attempts.min(8)).min(MAX_BACKOFF_MS);
            let jittered_ms = backoff_ms / 2 + sys::random_below(backoff_ms / 2);
            sleep(Duration::from_millis(jittered_ms)).await;
        }
    }

    /// Runs the links until one of them fails; returns the reason.
    async fn live_once(self: &Rc<Self>) -> LinkError {
        self.is_ending.set(false);
        self.error.take();
        let mut closers = Vec::new();
        for link in [LinkName::Subscribe, LinkName::Publish] {
            self.tasks.set(self.tasks.get() + 2);
            let connected = connect::connect(&self.url).await;
            match connected.and_then(|stream| self.serve(link, stream)) {
                Ok(closer) => closers.push(closer),
                Err(error) => {
                    self.tasks.set(self.tasks.get() - 2);
                    let url = &self.url;
                    self.fail(LinkError::Io(format!("cannot connect to {url}: {error}")));
                    break;
                }
            }
        }
        if closers.len() == 2 {
            let mut broker = self.broker.borrow_mut();
            let monotonic = self.time_at(Instant::now());
            broker.handle_open(Now { monotonic, wall: clock::wall() });
            drop(broker);
            self.outgoing.iter().for_each(Notify::notify);
        }
        // The flag may be left over from the previous run.
        while self.error.borrow().is_none() {
            poll_fn(|context| self.failed.poll(context)).await;
        }
        self.is_ending.set(true);
        drop(closers);
        self.outgoing.iter().for_each(Notify::notify);
        self.task_ended.wait_until(|| self.tasks.get() == 0).await;
        self.error.take().unwrap_or(LinkError::Closed)
    }

    fn fail(&self, error: LinkError) {
        self.error.borrow_mut().get_or_insert(error);
        self.failed.notify();
    }

    /// Handles the end of a link's task.
    pub(super) fn handle_task_end(&self, result: Result<(), LinkError>) {
        self.tasks.set(self.tasks.get() - 1);
        if let Err(error) = result
            && !self.is_ending()
        {
            self.fail(error);
        }
        self.task_ended.wake_all();
    }

    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.get()
    }

    pub(super) fn outgoing(&self, link: LinkName) -> &Notify {
        &self.outgoing[link as usize]
    }

    /// Waits actively while many messages are pending, answers keep coming and nothing is to be
    /// written.
    pub(super) async fn stay_awake(&self) {
        let (mut last, mut since) = (0, Instant::now());
        while self.host.may_stay_awake() {
            self.host.keep_time();
            let under_way = self.broker.borrow().under_way();
            if under_way != last {
                (last, since) = (under_way, Instant::now());
            }
            let has_outgoing = self.broker.borrow().has_outgoing(LinkName::Publish);
            if has_outgoing || under_way < AWAKE_MESSAGES || since.elapsed() >= AWAKE_FOR {
                break;
            }
            yield_now().await;
        }
    }

    pub(super) fn take_outgoing(&self, link: LinkName, out: &mut Vec<u8>, max: usize) {
        self.broker.borrow_mut().take_outgoing(link, out, max);
    }

    /// Handles a partial write of what does not fit in the socket at once.
    pub(super) fn handle_written(&self, link: LinkName) {
        self.broker.borrow_mut().handle_written(link, self.time_at(Instant::now()));
    }

    // What goes in.

    pub(super) fn handle_bytes(&self, link: LinkName, bytes: &[u8]) -> Result<Handled, LinkError> {
        self.with_broker(|broker, now, sink| {
            self.receive_from_workers(broker, now);
            broker.handle_bytes(link, bytes, now, sink)
        })
    }

    /// Publishes a message; the outcome goes to the host's sink. `read_at`: a recent time at which
    /// it was read, which saves a clock reading per message.
    pub(super) fn push(
        &self,
        envelope: &Envelope<'_>,
        routing: Routing,
        pusher: Pusher,
        read_at: Instant,
    ) {
        self.with_broker_at(read_at, |broker, now, sink| {
            broker.handle_push(envelope, routing, pusher, now, sink);
        });
    }

    pub(super) fn request(&self, worker: usize, request: &BrokerRequest) {
        self.with_broker(|broker, now, sink| {
            self.take_config(broker, now);
            broker.handle_request(worker, request, now, sink);
        });
    }

    pub(super) fn receive(&self) {
        self.with_broker(|broker, now, _| self.receive_from_workers(broker, now));
    }

    fn receive_from_workers(&self, broker: &mut Broker, now: MonotonicMs) {
        self.host.receive(broker, now, &|broker| self.take_config(broker, now));
    }

    /// Takes the configuration that a reload has put in force, if it has. A worker that has taken
    /// it before sends requests for its projects.
    fn take_config(&self, broker: &mut Broker, now: MonotonicMs) {
        if self.generation.get() == self.shared.generation() {
            return;
        }
        let active = self.shared.active();
        let max_bytes = envelope::max_bytes(&active.settings.limits);
        broker.reload(active.projects, max_bytes, now);
        self.generation.set(active.generation);
        self.counters.config_generation.set(active.generation);
    }

    pub(super) fn handle_tick(&self) {
        let result = self.with_broker(|broker, now, sink| {
            // Before receiving: what workers have sent before is received now.
            let is_round_due = self.shared.is_draining() && self.shared.drain.is_round_due();
            self.take_config(broker, now);
            self.receive_from_workers(broker, now);
            if is_round_due && broker.has_come_round(now) {
                self.shared.drain.complete_round();
            }
            let both = Now { monotonic: now, wall: clock::wall() };
            let result = broker.handle_tick(both, sink);
            if result.is_ok() && broker.is_ready() {
                match broker.stuck_worker(now) {
                    Some(worker) => self.shared.queue.set_stuck(worker),
                    None => self.shared.queue.set_ready(),
                }
            }
            self.leave_when_drained(broker, now);
            result
        });
        if let Err(error) = result {
            self.fail(error);
        }
        self.log_unlogged_gaps();
    }

    /// Announces that a draining node leaves, once its last connection is gone: peers must know
    /// before it ends.
    fn leave_when_drained(&self, broker: &mut Broker, now: MonotonicMs) {
        let may_leave = self.shared.is_draining() && self.shared.drain.has_told();
        if !may_leave || self.shared.connections() > 0 {
            return;
        }
        let has_left = broker.has_left();
        broker.handle_leaving(now);
        if !broker.is_ready() || has_left && broker.is_idle() {
            self.shared.queue.set_over();
        }
    }

    fn with_broker<R>(&self, act: impl FnOnce(&mut Broker, MonotonicMs, &mut dyn Sink) -> R) -> R {
        self.with_broker_at(Instant::now(), act)
    }

    fn with_broker_at<R>(
        &self,
        at: Instant,
        act: impl FnOnce(&mut Broker, MonotonicMs, &mut dyn Sink) -> R,
    ) -> R {
        let mut broker = self.broker.borrow_mut();
        let result = act(&mut broker, self.time_at(at), &mut self.host.sink(at));
        self.host.wake();
        for link in [LinkName::Publish, LinkName::Subscribe] {
            if broker.has_outgoing(link) {
                self.outgoing(link).notify();
            }
        }
        self.log_events(&mut broker);
        result
    }

    /// Returns the broker's time. It never goes back, whatever the order of the calls.
    fn time_at(&self, at: Instant) -> MonotonicMs {
        // Requests that were read together share one time.
        if self.last_at.replace(at) != at {
            self.last.set(clock::monotonic_at(at).max(self.last.get()));
        }
        self.last.get()
    }

    fn log_events(&self, broker: &mut Broker) {
        if !broker.has_events() {
            return;
        }
        for event in broker.take_events() {
            match event {
                Event::Ready { resent, channels } => {
                    self.gaps.take();
                    self.shared.queue.set_ready();
                    tracing::info!(url = %self.url, resent, channels, "the queue is up");
                }
                Event::Missed { origin, channel, missed } => {
                    self.log_gap(origin, &channel, missed);
                }
                Event::Malformed { channel, error } if self.may_log(0) => {
                    let channel = String::from_utf8_lossy(&channel);
                    tracing::warn!(%channel, %error, "dropped a message that is not a valid \
                        envelope");
                }
                Event::TooBig { channel, bytes } if self.may_log(1) => {
                    let channel = String::from_utf8_lossy(&channel);
                    tracing::warn!(
                        %channel,
                        bytes,
                        "dropped an envelope that is too long: use the same --max_body_bytes on \
                         all nodes"
                    );
                }
                Event::SameNode if self.may_log(2) => {
                    let node = self.shared.at_start.node;
                    tracing::error!(
                        %node,
                        "another process uses this node's number: give each node its own --node"
                    );
                }
                Event::FalseNumber { .. }
                | Event::NumbersReset { .. }
                | Event::UnknownKind { .. }
                | Event::IdsNotKept { .. } => self.log_oddity(&event),
                Event::Refused { channel, error } if self.may_log(3) => {
                    let channel = String::from_utf8_lossy(&channel);
                    tracing::warn!(%channel, %error, "Redis refused a PUBLISH: the push gets 503");
                }
                Event::ChannelRefused { channel, error, rule } => {
                    self.log_refused(channel, &error, &rule);
                }
                Event::ChannelAllowed { channel } => self.log_allowed(&channel),
                Event::Limit(limit) => self.handle_limit(limit),
                Event::Abandoned { channel, bytes } => {
                    let channel = String::from_utf8_lossy(&channel);
                    tracing::error!(
                        %channel,
                        bytes,
                        "three links to Redis ended while this message was being sent, so it is \
                         not sent again: see Redis's log and its limits on the size of a message"
                    );
                }
                Event::Forbidden { command, error } => {
                    let (loss, rule) = (command.loss(), command.rule());
                    tracing::warn!(%error, "{loss}: grant this node's user {rule}");
                }
                _ => {}
            }
        }
    }

    /// Logs each refused channel once until it is allowed: the node retries it again and again.
    fn log_refused(&self, channel: Box<[u8]>, error: &str, rule: &str) {
        let mut refused = self.refused.borrow_mut();
        if refused.len() >= REFUSED_LOGGED || refused.contains(&channel) {
            return;
        }
        let name = String::from_utf8_lossy(&channel);
        tracing::error!(
            channel = %name,
            %error,
            "Redis does not let this node subscribe to a channel: new clients that need it get \
             503. Allow it with {rule}"
        );
        refused.insert(channel);
        if refused.len() == REFUSED_LOGGED {
            tracing::error!(
                "further refused channels are only counted: see ws_cluster_queue_channel_refused"
            );
        }
    }

    fn log_allowed(&self, channel: &[u8]) {
        if self.refused.borrow_mut().remove(channel) {
            let channel = String::from_utf8_lossy(channel);
            tracing::info!(%channel, "Redis now lets this node subscribe to the channel");
        }
    }

    fn handle_limit(&self, limit: SizeLimit) {
        self.shared.queue.set_limit(limit);
        if limit.bytes < self.shared.active().settings.limits.body_bytes {
            tracing::warn!("larger pushes are refused with 413: {limit}");
        }
    }

    /// Logs what this node dropped or corrected of what others sent, and what Redis does not keep.
    fn log_oddity(&self, event: &Event) {
        match event {
            Event::FalseNumber { origin, channel } if self.may_log(4) => {
                let channel = String::from_utf8_lossy(channel);
                tracing::warn!(
                    %origin,
                    %channel,
                    "dropped a message whose sequence number its node never assigned: something \
                     else publishes on this channel"
                );
            }
            Event::NumbersReset { origin, channel } if self.may_log(5) => {
                let channel = String::from_utf8_lossy(channel);
                tracing::warn!(
                    %origin,
                    %channel,
                    "the sequence number recorded for this origin was wrong and is reset"
                );
            }
            Event::UnknownKind { origin } if self.may_log(6) => {
                tracing::info!(%origin, "ignoring messages of a kind that only newer nodes know");
            }
            Event::IdsNotKept { key, error } => {
                let fix = match error.starts_with("NOPERM") {
                    true => format!("allow INCRBY on the key {key}"),
                    false => {
                        format!("make Redis accept writes (INCRBY {key} is retried every minute)")
                    }
                };
                tracing::warn!(
                    %error,
                    "Redis does not record the client ids that this node assigns: after a restart \
                     with the clock set back, some are assigned again; {fix}"
                );
            }
            _ => {}
        }
    }

    /// Returns whether trouble of this kind was not logged recently: a peer must not fill the log.
    /// All of it is counted.
    fn may_log(&self, kind: usize) -> bool {
        let last = &mut self.logged.borrow_mut()[kind];
        let may_log = last.is_none_or(|last| last.elapsed() >= WARNING_EVERY);
        if may_log {
            *last = Some(Instant::now());
        }
        may_log
    }

    fn log_gap(&self, origin: NodeId, channel: &[u8], missed: u64) {
        let mut gaps = self.gaps.borrow_mut();
        if gaps.logged < GAPS_LOGGED {
            gaps.logged += 1;
            let channel = String::from_utf8_lossy(channel);
            tracing::warn!(%origin, %channel, missed, "messages were missed while a link was down");
        } else {
            gaps.unlogged += 1;
            gaps.messages += missed;
        }
    }

    /// Logs the sum of the gaps that were too many to be logged one by one.
    fn log_unlogged_gaps(&self) {
        let mut gaps = self.gaps.borrow_mut();
        let (channels, missed) =
            (std::mem::take(&mut gaps.unlogged), std::mem::take(&mut gaps.messages));
        if missed > 0 {
            tracing::warn!(channels, missed, "messages were missed on further channels");
        }
    }
}
