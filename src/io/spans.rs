//! Spans of pushes and requests. Workers put them in a ring, from which the exporter takes them. A
//! full ring drops them and counts the loss; without an exporter there is no recorder at all.

use super::{clock, sys};
use crate::state::counters::Counters;
use crate::state::projects::ProjectId;
use crate::types::MessageId;
use crate::wire::trace_context::TraceContext;
use rtrb::{Consumer, Producer, RingBuffer};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

/// Spans of one worker that may wait for the exporter.
const RING_ENTRIES: usize = 8_192;
/// Requests of one worker that may be traced at once.
const MAX_REQUESTS: usize = 4_096;

/// What a span measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanName {
    /// From a backend's complete request to its answer.
    PushAccepted,
    /// From acceptance to the queue's answer.
    PushQueued,
    /// From a worker's receipt of the message until it has handed it to its sockets.
    PushReceived,
    /// The sends themselves.
    PushWritten,
    /// From a client's request to its answer.
    Request,
    /// From a request sent to a business server to its answer.
    Response,
}

/// The side from which a request is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Client,
    Server,
}

/// A finished span.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub name: SpanName,
    pub context: TraceContext,
    /// `None`: it is the root of the trace.
    pub parent: Option<[u8; 8]>,
    /// Microseconds since the Unix epoch.
    pub start_us: u64,
    pub end_us: u64,
    pub project: Option<ProjectId>,
    /// Id of the message or of the request.
    pub id: MessageId,
    /// Connections that the message went to; for a request, 1 if it was answered.
    pub count: u64,
    pub is_error: bool,
    pub worker: u8,
}

/// Decides which new traces are recorded; a trace that comes with a push carries its own decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Sampled share, in parts of a billion.
    pub parts_per_billion: u32,
    /// Whether the caller's sampling decision is honoured.
    pub follows_parent: bool,
    /// Whether a caller's trace is continued at all, rather than a new one started.
    pub continues_traces: bool,
}

impl Sampler {
    /// Returns the decision for a trace that nobody has decided on. It depends on the trace id
    /// alone, and in the way that OpenTelemetry's SDKs decide (`TraceIDRatioBased` of Go, Java and
    /// Rust): all programs with the same share record the same traces, so that none has holes.
    fn takes(self, trace_id: &[u8; 16]) -> bool {
        let [.., a, b, c, d, e, f, g, h] = *trace_id;
        let random = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1;
        let bound = (u128::from(self.parts_per_billion) << 63) / 1_000_000_000;
        u128::from(random) < bound
    }
}

/// A worker's end of the ring.
pub struct Recorder {
    ring: RefCell<Producer<Span>>,
    sampler: Sampler,
    worker: u8,
    state: Cell<u64>,
    /// Requests in progress, with their start times.
    requests: RefCell<HashMap<(MessageId, Side), u64>>,
    counters: Arc<Counters>,
}

/// Creates both ends for a worker.
pub fn pair(
    worker: usize,
    sampler: Sampler,
    counters: &Arc<Counters>,
) -> io::Result<(Recorder, Consumer<Span>)> {
    let (producer, consumer) = RingBuffer::new(RING_ENTRIES);
    let recorder = Recorder {
        ring: RefCell::new(producer),
        sampler,
        worker: worker as u8,
        state: Cell::new(sys::random_u64()?),
        requests: RefCell::default(),
        counters: Arc::clone(counters),
    };
    Ok((recorder, consumer))
}

impl Recorder {
    /// Returns the context of a new span, below `parent` if there is one. `None`: not recorded.
    pub fn begin(&self, parent: Option<TraceContext>) -> Option<TraceContext> {
        let new_id = || trace_id(self.next(), self.next() | 1);
        let trace_id = parent.map_or_else(new_id, |parent| parent.trace_id);
        let is_sampled = match parent {
            Some(parent) if self.sampler.follows_parent => parent.is_sampled,
            _ => self.sampler.takes(&trace_id),
        };
        let span_id = || (self.next() | 1).to_be_bytes();
        is_sampled.then(|| TraceContext { trace_id, span_id: span_id(), is_sampled: true })
    }

    /// Returns the context that a caller's `traceparent` names, if it is to be continued.
    pub fn parent(&self, traceparent: Option<&str>) -> Option<TraceContext> {
        traceparent.filter(|_| self.sampler.continues_traces).and_then(TraceContext::parse)
    }

    /// Returns the context of a span below `parent`.
    pub fn below(&self, parent: &TraceContext) -> TraceContext {
        TraceContext { span_id: (self.next() | 1).to_be_bytes(), ..*parent }
    }

    pub fn record(&self, span: Span) {
        let span = Span { worker: self.worker, ..span };
        if self.ring.borrow_mut().push(span).is_err() {
            self.counters.spans_dropped.add(1);
        }
    }

    /// Begins to trace a client's request on the node that received it, or on the node that passes
    /// it to a business server. Both nodes derive the trace from the request's id.
    pub fn begin_request(&self, id: MessageId, side: Side) {
        let mut requests = self.requests.borrow_mut();
        if self.request_context(id).is_some() && requests.len() < MAX_REQUESTS {
            requests.insert((id, side), clock::wall_us());
        }
    }

    pub fn end_request(&self, id: MessageId, side: Side, project: ProjectId, is_error: bool) {
        let Some(start_us) = self.requests.borrow_mut().remove(&(id, side)) else { return };
        let Some(root) = self.request_context(id) else { return };
        let (name, context, parent) = match side {
            Side::Client => (SpanName::Request, root, None),
            Side::Server => (SpanName::Response, self.below(&root), Some(root.span_id)),
        };
        let (end_us, project, count) = (clock::wall_us(), Some(project), u64::from(!is_error));
        let worker = self.worker;
        self.record(Span {
            name,
            context,
            parent,
            start_us,
            end_us,
            project,
            id,
            count,
            is_error,
            worker,
        });
    }

    /// `None`: it is not sampled. The half of the trace id that decides is the id with its bits
    /// mixed, so that a uniform share of the ids is chosen.
    fn request_context(&self, id: MessageId) -> Option<TraceContext> {
        let trace_id = trace_id(id.0, mix(id.0));
        let span_id = id.0.to_be_bytes();
        let is_sampled = self.sampler.takes(&trace_id);
        is_sampled.then_some(TraceContext { trace_id, span_id, is_sampled })
    }

    fn next(&self) -> u64 {
        let state = self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.state.set(state);
        mix(state)
    }
}

fn trace_id(high: u64, low: u64) -> [u8; 16] {
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

/// The output function of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Sampler =
        Sampler { parts_per_billion: 1_000_000_000, follows_parent: true, continues_traces: true };

    fn parent(is_sampled: bool) -> TraceContext {
        TraceContext { trace_id: [7; 16], span_id: [9; 8], is_sampled }
    }

    #[test]
    fn a_callers_trace_is_continued_and_its_decision_counts() {
        let (recorder, _) = pair(0, ALL, &Arc::default()).unwrap();
        let context = recorder.begin(Some(parent(true))).unwrap();
        assert_eq!(context.trace_id, [7; 16]);
        assert_ne!(context.span_id, [9; 8]);
        assert_eq!(recorder.begin(Some(parent(false))), None);
        let none = Sampler { parts_per_billion: 0, ..ALL };
        let (recorder, _) = pair(0, none, &Arc::default()).unwrap();
        assert!(recorder.begin(None).is_none() && recorder.begin(Some(parent(true))).is_some());
        let (recorder, _) =
            pair(0, Sampler { follows_parent: false, ..none }, &Arc::default()).unwrap();
        assert!(recorder.begin(Some(parent(true))).is_none());
    }

    /// Each node used to draw lots: of a backend's trace one node recorded its part and the next
    /// did not.
    #[test]
    fn with_a_share_of_all_traces_every_node_decides_the_same_about_a_callers_trace() {
        let half = Sampler { parts_per_billion: 500_000_000, follows_parent: false, ..ALL };
        let nodes = [(); 2].map(|()| pair(0, half, &Arc::default()).unwrap().0);
        let mut sampled = 0;
        for number in 0..1_000_u64 {
            let trace_id = trace_id(7, mix(number));
            let parent = TraceContext { trace_id, ..parent(number % 2 == 0) };
            let decisions = nodes.each_ref().map(|node| node.begin(Some(parent)).is_some());
            // The rule of OpenTelemetry for Go: the right half of the id, shifted by one.
            assert_eq!(decisions, [mix(number) >> 1 < 1 << 62; 2]);
            sampled += u32::from(decisions[0]);
        }
        assert!((400..600).contains(&sampled), "{sampled}");
        for (parts_per_billion, taken) in [(1_000_000_000, true), (0, false)] {
            let sampler = Sampler { parts_per_billion, ..ALL };
            assert_eq!([[0; 16], [0xff; 16]].map(|id| sampler.takes(&id)), [taken; 2]);
        }
    }

    #[test]
    fn a_share_of_new_traces_and_requests_is_sampled() {
        let tenth = Sampler { parts_per_billion: 100_000_000, ..ALL };
        let (recorder, _) = pair(0, tenth, &Arc::default()).unwrap();
        let traces = (0..10_000).filter(|_| recorder.begin(None).is_some()).count();
        assert!((800..1_200).contains(&traces), "{traces}");
        let id = |number: u64| MessageId(number << 12 | 1 << 40);
        let asked = (0..10_000).filter(|&n| recorder.request_context(id(n)).is_some()).count();
        assert!((800..1_200).contains(&asked), "{asked}");
    }

    #[test]
    fn a_full_ring_drops_and_counts() {
        let counters: Arc<Counters> = Arc::default();
        let (recorder, mut source) = pair(3, ALL, &counters).unwrap();
        for number in 0..RING_ENTRIES as u64 + 5 {
            recorder.begin_request(MessageId(number), Side::Client);
            recorder.end_request(MessageId(number), Side::Client, ProjectId(0), false);
        }
        assert_eq!(counters.spans_dropped.value(), 5);
        let first = source.pop().unwrap();
        assert_eq!((first.worker, first.id, first.parent), (3, MessageId(0), None));
        recorder.end_request(MessageId(7), Side::Server, ProjectId(0), false);
        assert!(recorder.requests.borrow().is_empty());
    }
}
