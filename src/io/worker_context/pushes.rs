//! From a push to its acceptance.

use super::WorkerContext;
use super::traces::PushTrace;
use crate::io::broker::pending::Ticket;
use crate::io::clock::Moment;
use crate::io::sync::yield_now;
use crate::state::broker::Outcome;
use crate::state::idempotency::key_hash;
use crate::types::MessageId;
use crate::wire::envelope::Envelope;
use crate::wire::push::Push;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Instant;

/// Where a push comes from.
#[derive(Debug, Clone, Copy)]
pub struct PushOrigin<'a> {
    pub read_at: Moment,
    pub traceparent: Option<&'a str>,
}

/// A push that has begun.
pub struct PendingPush<'a> {
    context: &'a WorkerContext,
    id: MessageId,
    /// Boxed: few pushes are traced, and pending ones are moved around.
    trace: Option<Box<PushTrace>>,
    /// `None`: it has been accepted.
    ticket: Option<Ticket<'a>>,
}

impl PendingPush<'_> {
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// Returns whether there is nothing to wait for.
    pub fn is_accepted(&self) -> bool {
        self.ticket.is_none()
    }

    /// Waits until the queue has accepted it; returns its id.
    pub async fn finish(mut self) -> Result<MessageId, Outcome> {
        poll_fn(|context| self.poll_finish(context)).await
    }

    /// Polls for the result of [`PendingPush::finish`]. Must not be called again once it was ready.
    pub fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<MessageId, Outcome>> {
        let Some(ticket) = &mut self.ticket else { return Poll::Ready(Ok(self.id)) };
        let outcome = ready!(ticket.poll(context));
        self.context.traces.end_push(self.trace.as_deref(), self.id, Some(outcome));
        Poll::Ready(match outcome {
            Outcome::Accepted => Ok(self.id),
            refused => Err(refused),
        })
    }
}

impl WorkerContext {
    /// Begins to push a message. It has its id and its place in the order at once;
    /// [`PendingPush::finish`] reports whether it is accepted.
    pub fn begin_push(
        &self,
        pid: &str,
        push: &Push<'_>,
        origin: PushOrigin<'_>,
    ) -> Result<PendingPush<'_>, Outcome> {
        let trace = self.traces.begin_push(origin.traceparent, origin.read_at.wall_us);
        let pending = self.try_begin(pid, push, origin.read_at, trace);
        match &pending {
            Ok(pending) if pending.is_accepted() => {
                self.counters.pushes_accepted.add(1);
                self.traces.end_push(pending.trace.as_deref(), pending.id, None);
            }
            Ok(_) => {}
            Err(_) => self.counters.pushes_refused.add(1),
        }
        pending
    }

    fn try_begin(
        &self,
        pid: &str,
        push: &Push<'_>,
        read_at: Moment,
        trace: Option<PushTrace>,
    ) -> Result<PendingPush<'_>, Outcome> {
        let trace_bytes = trace.map(|trace| trace.context.to_bytes());
        let key = push.idempotency_key.as_deref().map(|key| key_hash(pid, key));
        let id = self.ws_server.borrow_mut().worker.next_message_id(read_at.wall());
        let envelope = Envelope {
            origin: self.shared.at_start.node,
            epoch: self.shared.incarnation.epoch(),
            seq: 0,
            accepted_us: read_at.wall_us,
            trace: trace_bytes.as_ref(),
            id,
            ttl_ms: push.ttl_ms,
            key: key.as_ref(),
            pid: pid.as_bytes(),
            targets: push.targets.as_targets(),
            data: &push.data,
        };
        let ticket = self.transport.push(&envelope, read_at.instant)?;
        if ticket.is_none() {
            self.deliver(&envelope, read_at);
        }
        Ok(PendingPush { context: self, id, ticket, trace: trace.map(Box::new) })
    }

    /// Waits until the receivers of this worker's pushes have room for one more, at most until
    /// `until`: no part of a batch should be refused because of the parts before it.
    pub async fn wait_for_takers(&self, until: Instant) {
        // They are on other threads and do not report that they have taken something.
        while !self.transport.has_room() && Instant::now() < until {
            yield_now().await;
        }
    }
}
