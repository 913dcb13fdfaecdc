//! Accepts the connections of the HTTP port. The worker's own ring waits for them, not the
//! executor's: an accept that is pending there takes a connection even after the port is closed.

use super::http::{self, Service};
use super::pauses;
use super::sync::{sleep, yield_now};
use super::sys;
use super::worker_context::WorkerContext;
use crate::state::counters::{HttpCounters, Refusal};
use monoio::net::TcpStream;
use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;

/// Accepts connections until the port is closed.
pub async fn serve(context: Rc<WorkerContext>) {
    let port = &context.http_port;
    while accept_all(&context).await {
        if port.is_closing() {
            return port.stop();
        }
        if let Some(listener) = port.listener().as_ref() {
            context.poll_http_port(listener);
        }
        poll_fn(|task| port.poll_changed(task)).await;
    }
}

/// Accepts the connections that wait. Returns `false` if the port is closed.
async fn accept_all(context: &Rc<WorkerContext>) -> bool {
    let port = &context.http_port;
    let mut accepted = 0;
    loop {
        match port.accept() {
            None => return false,
            Some(Ok((stream, peer))) => {
                accept(context, stream, peer).await;
                accepted += 1;
                if accepted % port.accepts_per_round() == 0 {
                    yield_now().await;
                }
            }
            Some(Err(error)) if sys::is_not_now(&error) => return true,
            Some(Err(error)) => {
                context.shared.http_counters[context.index].accept_errors.add(1);
                sleep(context.shared.http_accepts.handle(&error)).await;
            }
        }
    }
}

async fn accept(context: &Rc<WorkerContext>, stream: TcpStream, peer: IpAddr) {
    if !http::make_room(&context.http, context.max_http_connections()).await {
        context.count_refusal(Refusal::HttpConnections);
        let other = HttpCounters::url_of("other");
        context.shared.http_counters[context.index].count(other, 503, 0, 1);
        return http::refuse_connection(stream);
    }
    let admitted = http::admit(&context.http, stream, peer);
    context.note_http_connections();
    let context = Rc::clone(context);
    pauses::spawn(async move {
        http::serve(admitted, &*context).await;
        context.note_http_connections();
    });
}

impl WorkerContext {
    /// Returns the number of HTTP connections that this worker may have now.
    fn max_http_connections(&self) -> usize {
        self.descriptors.http_connections(self.ws_server.borrow().descriptors_in_use())
    }

    /// Records a change in the number of HTTP connections, which limits what the other port may
    /// use.
    fn note_http_connections(&self) {
        let (count, counters) = (self.http.borrow().count(), &self.shared.http_counters);
        self.descriptors.set_http(count);
        self.stir();
        counters[self.index].connections.set(count as u64);
        counters[self.index].max_connections.set(self.descriptors.connections() as u64);
    }
}
