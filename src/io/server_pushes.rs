//! Pushes that business servers send over their WebSocket: accepted in order, answered in order.

use super::api::{finish, not_accepted};
use super::clock::Moment;
use super::worker_context::{PendingPush, PushOrigin, WorkerContext};
use crate::state::ServerPush;
use crate::wire::json;
use crate::wire::push::Push;
use crate::wire::request::ApiError;
use crate::wire::sign;
use std::future::poll_fn;
use std::rc::Rc;

/// Maximum number of pushes that wait for the queue together.
const PUSHES_PER_TURN: usize = 256;

/// Serves them for as long as the worker lives.
pub async fn serve(context: Rc<WorkerContext>) {
    let mut pending = Vec::new();
    loop {
        poll_fn(|task| context.server_pushes.poll(task)).await;
        while begin_some(&context, &mut pending).await {
            for (push, result) in pending.drain(..) {
                let result = finish(result, &context.shared).await;
                let result = result.as_ref().map(|&id| id).map_err(|error| &*error.msg);
                let mut ws_server = context.ws_server.borrow_mut();
                ws_server.worker.answer_push(&push, result);
                ws_server.resume(push.key.slot);
                drop(ws_server);
                context.work.notify();
            }
        }
    }
}

type PendingServerPush<'c> = (ServerPush, Result<PendingPush<'c>, ApiError>);

/// Begins some pushes. Returns whether there were any.
async fn begin_some<'c>(
    context: &'c WorkerContext,
    pending: &mut Vec<PendingServerPush<'c>>,
) -> bool {
    while pending.len() < PUSHES_PER_TURN {
        context.wait_for_room().await;
        let Some(push) = context.ws_server.borrow_mut().worker.take_server_push() else { break };
        let result = begin(context, &push);
        pending.push((push, result));
    }
    !pending.is_empty()
}

fn begin<'c>(context: &'c WorkerContext, push: &ServerPush) -> Result<PendingPush<'c>, ApiError> {
    let active = context.active();
    let members = json::members(&push.message)?;
    let (read, exp) = Push::from_server(&members, &active.settings.limits)?;
    let read_at = Moment::read();
    sign::check_exp(exp, false, read_at.wall())?;
    let pid = active.projects.get(push.project).map_or("", |project| &*project.pid);
    if context.shared.is_refusing() {
        let msg = "this node is draining: push to another node".into();
        return Err(ApiError { status: 503, msg });
    }
    let origin = PushOrigin { read_at, traceparent: None };
    let pending = context.begin_push(pid, &read, origin);
    pending.map_err(|outcome| not_accepted(outcome, &context.shared))
}
