//! What a worker records of traced pushes and requests.

use crate::io::clock;
use crate::io::spans::{Recorder, Side, Span, SpanName};
use crate::state::Note;
use crate::state::broker::Outcome;
use crate::state::projects::ProjectId;
use crate::types::MessageId;
use crate::wire::trace_context::TraceContext;
use std::cell::{Cell, RefCell};

/// The span of a push's acceptance.
#[derive(Debug, Clone, Copy)]
pub(super) struct PushTrace {
    pub(super) context: TraceContext,
    parent: Option<[u8; 8]>,
    start_us: u64,
}

/// A traced message in the open batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct TracedDelivery {
    pub(super) parent: TraceContext,
    pub(super) id: MessageId,
    pub(super) project: Option<ProjectId>,
    pub(super) received_us: u64,
    pub(super) matched: u64,
}

pub(super) struct Traces {
    /// `None`: nothing is traced.
    recorder: Option<Recorder>,
    open: RefCell<Vec<TracedDelivery>>,
    flush_began_us: Cell<u64>,
}

impl Traces {
    pub(super) fn new(recorder: Option<Recorder>) -> Self {
        Self { recorder, open: RefCell::default(), flush_began_us: Cell::new(0) }
    }

    pub(super) fn are_on(&self) -> bool {
        self.recorder.is_some()
    }

    // Pushes.

    pub(super) fn begin_push(&self, traceparent: Option<&str>, now_us: u64) -> Option<PushTrace> {
        let recorder = self.recorder.as_ref()?;
        let parent = recorder.parent(traceparent);
        let context = recorder.begin(parent)?;
        let parent = parent.map(|parent| parent.span_id);
        Some(PushTrace { context, parent, start_us: now_us })
    }

    /// Ends the span of a push that was accepted or refused. `queued`: the queue's answer.
    pub(super) fn end_push(
        &self,
        trace: Option<&PushTrace>,
        id: MessageId,
        queued: Option<Outcome>,
    ) {
        let (Some(recorder), Some(trace)) = (&self.recorder, trace) else { return };
        let span = Span {
            name: SpanName::PushAccepted,
            context: trace.context,
            parent: trace.parent,
            start_us: trace.start_us,
            end_us: clock::wall_us(),
            project: None,
            id,
            count: 0,
            is_error: queued.is_some_and(|outcome| outcome != Outcome::Accepted),
            worker: 0,
        };
        if queued.is_some() {
            let context = recorder.below(&trace.context);
            let parent = Some(trace.context.span_id);
            recorder.record(Span { name: SpanName::PushQueued, context, parent, ..span });
        }
        recorder.record(span);
    }

    // Deliveries.

    /// Adds a traced message that the open batch holds.
    pub(super) fn add_delivery(&self, delivery: TracedDelivery) {
        self.open.borrow_mut().push(delivery);
    }

    /// Takes the traced messages of the batch that is flushed now.
    pub(super) fn begin_flush(&self) -> Vec<TracedDelivery> {
        let traced = self.open.take();
        if !traced.is_empty() {
            self.flush_began_us.set(clock::wall_us());
        }
        traced
    }

    /// Ends the spans of messages that have been handed to the sockets.
    pub(super) fn end_flush(&self, traced: &[TracedDelivery], now_us: u64) {
        let Some(recorder) = &self.recorder else { return };
        traced.iter().for_each(|delivery| self.end_delivery(recorder, delivery, now_us));
    }

    fn end_delivery(&self, recorder: &Recorder, delivery: &TracedDelivery, now_us: u64) {
        let received = recorder.below(&delivery.parent);
        let span = Span {
            name: SpanName::PushReceived,
            context: received,
            parent: Some(delivery.parent.span_id),
            start_us: delivery.received_us,
            end_us: now_us,
            project: delivery.project,
            id: delivery.id,
            count: delivery.matched,
            is_error: false,
            worker: 0,
        };
        let context = recorder.below(&received);
        let (parent, start_us) = (Some(received.span_id), self.flush_began_us.get());
        recorder.record(Span { name: SpanName::PushWritten, context, parent, start_us, ..span });
        recorder.record(span);
    }

    // Requests.

    pub(super) fn note(&self, note: Note) {
        let Some(recorder) = &self.recorder else { return };
        match note {
            Note::Asked(id) => recorder.begin_request(id, Side::Client),
            Note::Put(id) => recorder.begin_request(id, Side::Server),
            Note::Answered { id, project, is_error } => {
                recorder.end_request(id, Side::Client, project, is_error);
            }
            Note::Replied { id, project, is_error } => {
                recorder.end_request(id, Side::Server, project, is_error);
            }
        }
    }
}
