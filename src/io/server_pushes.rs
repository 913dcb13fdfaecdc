//! Pushes that business servers send over their WebSocket: accepted in order, answered in order.

use super::api::{finish, not_accepted};
use super::core::{Begun, Core, PushOrigin};
use super::http::Moment;
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
pub async fn serve(core: Rc<Core>) {
    let mut begun = Vec::new();
    loop {
        poll_fn(|context| core.server_pushes.poll(context)).await;
        while begin_some(&core, &mut begun).await {
            for (push, result) in begun.drain(..) {
                let result = finish(result, &core.shared).await;
                let result = result.as_ref().map(|&id| id).map_err(|error| &*error.msg);
                let mut engine = core.engine.borrow_mut();
                engine.worker.answer_push(&push, result);
                engine.resume(push.key.slot);
                drop(engine);
                core.work.raise();
            }
        }
    }
}

type Beginning<'c> = (ServerPush, Result<Begun<'c>, ApiError>);

/// Begins some pushes. Returns whether there were any.
async fn begin_some<'c>(core: &'c Core, begun: &mut Vec<Beginning<'c>>) -> bool {
    while begun.len() < PUSHES_PER_TURN {
        core.wait_for_room().await;
        let Some(push) = core.engine.borrow_mut().worker.take_server_push() else { break };
        let result = begin(core, &push);
        begun.push((push, result));
    }
    !begun.is_empty()
}

fn begin<'c>(core: &'c Core, push: &ServerPush) -> Result<Begun<'c>, ApiError> {
    let settings = &core.shared.settings;
    let members = json::members(&push.message)?;
    let (read, exp) = Push::from_server(&members, &settings.limits)?;
    let read_at = Moment::now();
    sign::check_exp(exp, false, read_at.now_us / 1_000)?;
    let pid = core.shared.projects.get(push.project).map_or("", |project| &*project.pid);
    if core.shared.is_draining() {
        let msg = "this node is draining: push to another".into();
        return Err(ApiError { status: 503, msg });
    }
    let origin = PushOrigin { read_at, traceparent: None };
    let begun = core.begin_push(pid, &read, origin);
    begun.map_err(|outcome| not_accepted(outcome, &core.shared))
}
