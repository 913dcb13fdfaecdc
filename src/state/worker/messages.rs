//! Messages of clients, and the replies.

use super::Worker;
use crate::state::projects::{ProjectId, SubscribePolicy};
use crate::types::{EventSet, Now};
use crate::wire::message::{self, ClientMessage, MessageKind};
use crate::wire::server_message::Detail;
use crate::wire::sign::{self, SignPlace, SignRules};
use smallvec::SmallVec;
use std::borrow::Cow;

impl Worker {
    pub(super) fn handle_message(&mut self, slot: u32, payload: &[u8], now: Now) {
        let frame = match message::parse(payload, &self.config.settings.limits) {
            Ok(ClientMessage::Subscribe { id, tags, sign }) => {
                return self.handle_subscribe(slot, id.as_deref(), &tags, sign.as_deref());
            }
            Ok(ClientMessage::Unsubscribe { id, tags }) => {
                return self.handle_unsubscribe(slot, id.as_deref(), &tags);
            }
            Ok(ClientMessage::Heartbeat { id }) => {
                self.open.add_text(|out| message::write_heartbeat(out, id.as_deref(), now.wall))
            }
            Ok(ClientMessage::Request { id, data }) => {
                return self.handle_client_request(slot, id.as_deref(), data, now);
            }
            Ok(ClientMessage::Refresh { id, session_exp, sign }) => {
                let result = self.refresh(slot, session_exp, sign.as_deref());
                self.open.add_text(|out| match result {
                    Ok(()) => message::write_refreshed(out, id.as_deref()),
                    Err(msg) => {
                        message::write_refusal(out, MessageKind::Refresh, id.as_deref(), &msg)
                    }
                })
            }
            Err(error) => self.open.add_text(|out| error.write(out)),
        };
        self.owe(slot, frame);
    }

    /// Moves the end of a session on a signed refresh; a connection without an end has none to
    /// move.
    pub(super) fn refresh(
        &mut self,
        slot: u32,
        session_exp: u64,
        sign: Option<&str>,
    ) -> Result<(), Cow<'static, str>> {
        let connection = &self.connections[slot as usize];
        let text = message::refresh_text(connection.cid, session_exp);
        self.check_sign(ProjectId(connection.project), &text, sign)?;
        if connection.session_exp == 0 {
            return Err("this connection was opened without session_exp".into());
        }
        // 0 stands for "no end", so a session that ended in 1970 gets 1.
        self.set_session_exp(slot, session_exp.max(1));
        Ok(())
    }

    /// Whether a message carries a valid signature of `text` for its project.
    fn check_sign(
        &self,
        project: ProjectId,
        text: &[u8],
        sign: Option<&str>,
    ) -> Result<(), Cow<'static, str>> {
        let Some(project) = self.config.projects.get(project) else {
            return Err("the project no longer exists".into());
        };
        let rules = SignRules {
            place: SignPlace::Member,
            shows_text: self.config.settings.env.shows_signed_text(),
        };
        sign::check(&project.secrets, &[text], sign, rules)
    }

    /// Unix seconds beyond 2106 count as never.
    pub(super) fn set_session_exp(&mut self, slot: u32, session_exp: u64) {
        let connection = &mut self.connections[slot as usize];
        let generation = connection.generation;
        let session_exp = u32::try_from(session_exp).unwrap_or(u32::MAX);
        let before = std::mem::replace(&mut connection.session_exp, session_exp);
        self.sessions.remove(&(u64::from(before), slot, generation));
        if session_exp != 0 {
            self.sessions.insert((u64::from(session_exp), slot, generation));
        }
    }

    fn handle_subscribe(
        &mut self,
        slot: u32,
        id: Option<&str>,
        tags: &[Cow<'_, str>],
        sign: Option<&str>,
    ) {
        if let Err(msg) = self.may_subscribe(slot, tags, sign) {
            let frame = self
                .open
                .add_text(|out| message::write_refusal(out, MessageKind::Subscribe, id, &msg));
            return self.owe(slot, frame);
        }
        let mut new: SmallVec<[&str; 8]> = SmallVec::new();
        for tag in tags {
            if self.directory.subscribe(&mut self.connections, slot, tag) {
                new.push(tag);
            }
        }
        // The reply may exceed its outbox and close the connection.
        if !new.is_empty() {
            self.report_event(slot, EventSet::SUBSCRIBE, Detail::Tags(&new));
        }
        self.answer_tags(slot, MessageKind::Subscribe, id);
    }

    fn handle_unsubscribe(&mut self, slot: u32, id: Option<&str>, tags: &[Cow<'_, str>]) {
        let mut gone: SmallVec<[&str; 8]> = SmallVec::new();
        for tag in tags {
            if self.directory.unsubscribe(&mut self.connections, slot, tag) {
                gone.push(tag);
            }
        }
        if !gone.is_empty() {
            self.report_event(slot, EventSet::UNSUBSCRIBE, Detail::Tags(&gone));
        }
        self.answer_tags(slot, MessageKind::Unsubscribe, id);
    }

    fn may_subscribe(
        &self,
        slot: u32,
        tags: &[Cow<'_, str>],
        sign: Option<&str>,
    ) -> Result<(), Cow<'static, str>> {
        let connection = &self.connections[slot as usize];
        let Some(project) = self.config.projects.get(ProjectId(connection.project)) else {
            return Err("the project no longer exists".into());
        };
        match project.subscribe {
            SubscribePolicy::Any => {}
            SubscribePolicy::None => {
                return Err(
                    "this project accepts tags only at connect, where they are signed".into()
                );
            }
            SubscribePolicy::Signed => {
                let text = message::subscribe_text(connection.cid, tags);
                self.check_sign(ProjectId(connection.project), &text, sign)?;
            }
        }
        let has = |name: &str| {
            let tag = self.directory.tag(connection.project, name.as_bytes());
            tag.is_some_and(|tag| connection.tags.contains(tag))
        };
        let new = tags.iter().filter(|name| !has(name)).count();
        let max = self.config.settings.limits.tags;
        if connection.tags.as_slice().len() + new > max {
            return Err(format!("too many tags: at most {max} for one connection").into());
        }
        Ok(())
    }

    fn answer_tags(&mut self, slot: u32, kind: MessageKind, id: Option<&str>) {
        let (directory, tags) = (&self.directory, self.connections[slot as usize].tags.as_slice());
        let frame = self.open.add_text(|out| {
            message::write_tags(
                out,
                kind,
                id,
                tags.iter().map(|entry| directory.tag_name(entry.tag)),
            );
        });
        self.owe(slot, frame);
    }
}
