//! Requests to business servers that are gone: answered in slices.

use super::servers::Leaving;
use super::{Note, Worker};
use crate::state::subscriptions::BrokerRequest;
use crate::types::Cid;
use crate::wire::parcel::Answer;

/// Maximum number of requests answered or freed between two ticks because their business server or
/// client is gone, or they have timed out.
pub(super) const ANSWERS_PER_SLICE: usize = 256;

impl Worker {
    /// Handles the loss of business servers elsewhere, already removed from the registry: their
    /// requests will not be answered.
    pub(super) fn forget_servers(&mut self, cids: &[Cid]) {
        self.show_known();
        cids.iter().for_each(|&cid| self.requests.handle_gone(cid));
        self.answer_for_gone();
    }

    /// Answers some of the requests to business servers that are gone. The rest follows in the next
    /// tick, which is due at once.
    pub(super) fn answer_for_gone(&mut self) {
        while self.answers_left > 0
            && let Some(leaving) = self.own_servers.next_leaving()
        {
            self.answers_left -= 1;
            match leaving {
                Leaving::Unanswered { server, id, client, is_written } => {
                    let answer = if is_written { Answer::Gone } else { Answer::Unwritten };
                    self.note(Note::Replied { id, project: server.project, is_error: true });
                    self.respond(server.project, id, client, server.cid, answer);
                }
                Leaving::Forgotten => {}
                // After the answers, so that those who may ask another server get them first.
                Leaving::Done(cid) => self.subscriptions.request(BrokerRequest::ServerGone(cid)),
            }
        }
        while self.answers_left > 0
            && let Some(id) = self.requests.next_of_gone()
        {
            self.answers_left -= 1;
            self.refuse_request(id, "server gone");
        }
        self.is_overdue |= self.has_unanswered();
    }

    /// Whether requests to a business server that is gone are still unanswered.
    pub(super) fn has_unanswered(&self) -> bool {
        self.own_servers.has_leaving() || self.requests.has_gone()
    }
}
