//! The task that drives a worker's engine, and the worker's thread around it.

use super::engine::Engine;
use super::http::Connections;
use super::mailbox::Mailbox;
use super::shared::Shared;
use super::wake::{EventFd, Flag, Waiters, duplicate, yield_now};
use super::{api, sys};
use crate::state::counters::Drop as DropReason;
use crate::types::{MessageId, NodeId};
use crate::wire::envelope::{Envelope, Targets};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// How often deadlines are looked at.
const TICK_MS: u64 = 50;
/// Envelopes taken from the mailbox before other tasks run.
const ENVELOPES_PER_TURN: usize = 256;
/// `reconnect_after_ms` is spread over so many milliseconds, so that a node's clients do not come back at once.
const RECONNECT_SPREAD_MS: u64 = 5_000;

/// What the tasks of one worker share.
pub struct Core {
    pub shared: Arc<Shared>,
    pub index: usize,
    pub engine: RefCell<Engine>,
    mailbox: RefCell<Mailbox>,
    /// Something is to be sent.
    work: Flag,
    /// A flush ended.
    flushed: Waiters,
    next_seq: Cell<u64>,
    pub http: RefCell<Connections>,
}

impl Core {
    pub fn new(shared: Arc<Shared>, index: usize, engine: Engine, mailbox: Mailbox) -> Rc<Self> {
        Rc::new(Self {
            shared,
            index,
            engine: RefCell::new(engine),
            mailbox: RefCell::new(mailbox),
            work: Flag::default(),
            flushed: Waiters::default(),
            next_seq: Cell::new(1),
            http: RefCell::default(),
        })
    }

    /// Accepts a message: delivers it to this worker's connections and hands it to the other workers.
    /// `None`: some worker's mailbox is full, and nobody got it.
    pub fn accept_push(
        &self,
        pid: &str,
        targets: Targets<'_>,
        data: &[u8],
        ttl_ms: u32,
        now_ms: u64,
    ) -> Option<MessageId> {
        let mut mailbox = self.mailbox.borrow_mut();
        let mut engine = self.engine.borrow_mut();
        if !mailbox.is_alone() && !mailbox.has_room(|_| true) {
            engine.worker.counters().count_drops(DropReason::MailboxFull, 1);
            return None;
        }
        let id = engine.worker.next_message_id(now_ms);
        let envelope = Envelope {
            origin: self.node(),
            epoch: self.shared.epoch,
            seq: self.next_seq.replace(self.next_seq.get() + 1),
            accepted_ms: now_ms,
            id,
            ttl_ms,
            pid,
            targets,
            data,
        };
        if !mailbox.is_alone() {
            let mut bytes = Vec::with_capacity(256 + data.len());
            envelope.encode(&mut bytes);
            mailbox.send(&Arc::from(bytes), |_| true);
        }
        engine.worker.handle_envelope(&envelope, now_ms);
        if engine.has_output() {
            self.work.raise();
        }
        Some(id)
    }

    fn node(&self) -> NodeId {
        self.shared.settings.node
    }

    /// Waits until the open batch has room: what pushes faster than the sockets take waits here.
    pub async fn wait_for_room(&self) {
        self.flushed.wait_until(|| !self.engine.borrow().worker.is_full()).await;
    }

    /// Sends everything that is owed, and lets other tasks run about every millisecond.
    async fn flush(&self) {
        while self.engine.borrow().has_output() {
            self.engine.borrow_mut().begin_flush(sys::now_ms());
            while self.engine.borrow_mut().send_chunk() {
                yield_now().await;
            }
            self.flushed.wake_all();
        }
    }

    fn tick(&self) {
        let now_ms = sys::now_ms();
        self.engine.borrow_mut().handle_tick(now_ms);
        self.http.borrow_mut().handle_tick(now_ms);
        self.work.raise();
    }
}

/// Runs a worker until the node has drained. To be called in the worker's own thread, after it has its own
/// file-descriptor table.
pub async fn run(core: Rc<Core>, http_listener: TcpListener) -> io::Result<()> {
    monoio::spawn(drive(Rc::clone(&core)));
    monoio::spawn(receive(Rc::clone(&core)));
    monoio::spawn(api::serve_port(Rc::clone(&core), http_listener)?);
    let mut drain_until_ms = None;
    loop {
        monoio::time::sleep(Duration::from_millis(TICK_MS)).await;
        core.tick();
        if !core.shared.is_draining() {
            continue;
        }
        let now_ms = sys::now_ms();
        let settings = &core.shared.settings;
        let deadline_ms = *drain_until_ms.get_or_insert_with(|| {
            core.engine
                .borrow_mut()
                .worker
                .handle_shutdown(|| (1_000 + sys::random_u64() % RECONNECT_SPREAD_MS) as u32);
            core.work.raise();
            now_ms + settings.drain_ms.saturating_sub(4 * TICK_MS)
        });
        let is_drained = core.engine.borrow().sockets() == 0 && core.http.borrow().is_quiet();
        if is_drained || now_ms >= deadline_ms {
            return Ok(());
        }
    }
}

/// Handles what the ring brings and sends what is owed, for as long as the worker lives.
async fn drive(core: Rc<Core>) {
    let eventfd = duplicate(core.engine.borrow_mut().ring().eventfd());
    let Ok(mut eventfd) = eventfd.and_then(EventFd::new) else {
        tracing::error!("no eventfd for the ring: this worker serves nothing");
        return;
    };
    core.engine.borrow_mut().ring().submit();
    loop {
        poll_fn(|context| match (core.work.poll(context), eventfd.poll(context)) {
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            _ => Poll::Ready(()),
        })
        .await;
        core.engine.borrow_mut().ring().set_eventfd(false);
        loop {
            let has_events = core.engine.borrow_mut().has_events();
            if has_events {
                core.engine.borrow_mut().turn(sys::now_ms());
            }
            core.flush().await;
            if !has_events && core.engine.borrow_mut().may_sleep() {
                break;
            }
            yield_now().await;
        }
    }
}

/// Delivers what other workers accepted.
async fn receive(core: Rc<Core>) {
    let eventfd = duplicate(core.mailbox.borrow().bell().eventfd());
    let Ok(mut eventfd) = eventfd.and_then(EventFd::new) else {
        tracing::error!("no eventfd for the mailbox: this worker hears nothing");
        return;
    };
    loop {
        for _ in 0..ENVELOPES_PER_TURN {
            let Some(bytes) = core.mailbox.borrow_mut().receive() else { break };
            match Envelope::decode(&bytes) {
                Ok(envelope) => {
                    let mut engine = core.engine.borrow_mut();
                    engine.worker.handle_envelope(&envelope, sys::now_ms());
                    if engine.has_output() {
                        core.work.raise();
                    }
                }
                Err(error) => tracing::error!(%error, "an envelope of this very node is malformed"),
            }
            core.wait_for_room().await;
        }
        if !core.mailbox.borrow().is_empty() {
            yield_now().await;
            continue;
        }
        core.mailbox.borrow().bell().fall_asleep();
        if core.mailbox.borrow().is_empty() {
            eventfd.wait().await;
        }
    }
}
