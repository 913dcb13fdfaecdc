//! The greeting on a link to Redis: authentication, protocol version, and questions about the
//! server.

use super::facts::{Facts, Question};
use super::link_error::{LinkError, LinkName};
use crate::wire::redis_url::RedisUrl;
use crate::wire::resp::{Reply, write_command};

/// Credentials for a link.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub url: RedisUrl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Hello,
    /// RESP2 from here on: Redis before version 6, or one that forbids HELLO.
    Auth,
    SetName,
    Select,
    /// The question at this index of [`Question::AT_GREETING`].
    BrokerRequest(usize),
    Done,
}

/// One step at a time, each answered before the next: HELLO 3 with the credentials and the link's
/// name, or AUTH and CLIENT SETNAME where HELLO is unknown; then SELECT unless the database is 0;
/// then, on the publishing link, the questions about Redis itself.
#[derive(Debug)]
pub struct Greeting {
    step: Step,
    asks: bool,
}

impl Greeting {
    pub fn start(link: LinkName, credentials: &Credentials, name: &str, out: &mut Vec<u8>) -> Self {
        let url = &credentials.url;
        let mut arguments: Vec<&[u8]> = vec![b"HELLO", b"3"];
        if let Some(password) = &url.password {
            let user = url.user.as_deref().unwrap_or("default");
            arguments.extend([&b"AUTH"[..], user.as_bytes(), password.expose().as_bytes()]);
        }
        arguments.extend([&b"SETNAME"[..], name.as_bytes()]);
        write_command(out, &arguments);
        Self { step: Step::Hello, asks: link == LinkName::Publish }
    }

    pub fn is_done(&self) -> bool {
        self.step == Step::Done
    }

    /// Handles the reply to the current step. `Err`: Redis refuses us or is unusable.
    pub fn handle_reply(
        &mut self,
        reply: &Reply<'_>,
        credentials: &Credentials,
        name: &str,
        facts: &mut Facts,
        out: &mut Vec<u8>,
    ) -> Result<(), LinkError> {
        self.step = match (self.step, reply) {
            (Step::Hello, Reply::Error(text)) if is_about_password(text) || is_closed(text) => {
                return Err(explain(text));
            }
            (Step::Hello, Reply::Error(_)) if credentials.url.password.is_some() => Step::Auth,
            (Step::Hello, Reply::Error(_)) => Step::SetName,
            (Step::Hello, Reply::Server { .. } | Reply::Other) => {
                if self.asks {
                    facts.handle_hello(reply);
                }
                after_name(credentials)
            }
            (Step::Auth | Step::Select, Reply::Error(text)) => return Err(explain(text)),
            (Step::Auth, Reply::Simple(_)) => Step::SetName,
            // The name only serves operators: an ACL may forbid it. But without AUTH this is the
            // first command that reveals whether a password is needed.
            (Step::SetName, Reply::Error(text)) if is_about_password(text) => {
                return Err(explain(text));
            }
            (Step::SetName, Reply::Simple(_) | Reply::Error(_)) => after_name(credentials),
            (Step::Select, Reply::Simple(_)) => Step::BrokerRequest(0),
            (Step::BrokerRequest(index), reply) => {
                facts.handle_answer(Question::AT_GREETING[index], reply)?;
                Step::BrokerRequest(index + 1)
            }
            // Not a reply to this step: it was sent before we asked, or by something else.
            _ => return Err(LinkError::Unasked),
        };
        if let Step::BrokerRequest(mut index) = self.step {
            let questions = &Question::AT_GREETING;
            while questions.get(index).is_some_and(|&question| !facts.may_ask(question)) {
                index += 1;
            }
            let is_over = !self.asks || index == questions.len();
            self.step = if is_over { Step::Done } else { Step::BrokerRequest(index) };
        }
        match self.step {
            Step::Auth => write_auth(credentials, out),
            Step::SetName => {
                write_command(out, &[b"CLIENT", b"SETNAME", name.as_bytes()]);
            }
            Step::Select => {
                let db = credentials.url.db.to_string();
                write_command(out, &[b"SELECT", db.as_bytes()]);
            }
            Step::BrokerRequest(index) => Question::AT_GREETING[index].write(out),
            Step::Hello | Step::Done => {}
        }
        Ok(())
    }
}

fn after_name(credentials: &Credentials) -> Step {
    if credentials.url.db != 0 { Step::Select } else { Step::BrokerRequest(0) }
}

fn write_auth(credentials: &Credentials, out: &mut Vec<u8>) {
    let url = &credentials.url;
    let password = url.password.as_ref().map_or("", |password| password.expose());
    match &url.user {
        Some(user) => write_command(out, &[b"AUTH", user.as_bytes(), password.as_bytes()]),
        None => write_command(out, &[b"AUTH", password.as_bytes()]),
    }
}

fn is_about_password(text: &[u8]) -> bool {
    text.starts_with(b"WRONGPASS") || text.starts_with(b"NOAUTH")
}

/// Whether Redis would answer any first command with this and accept none: not a reply to HELLO.
fn is_closed(text: &[u8]) -> bool {
    let words: [&[u8]; 3] = [b"ERR max number of clients", b"DENIED", b"LOADING"];
    words.iter().any(|words| text.starts_with(words))
}

/// Describes Redis's error, with the fix where it is known.
fn explain(text: &[u8]) -> LinkError {
    let said = String::from_utf8_lossy(text);
    LinkError::Refused(if text.starts_with(b"NOAUTH") {
        format!("{said} Set the password: WS_CLUSTER_REDIS=redis://user:password@host:port/0")
    } else if is_about_password(text) || text.starts_with(b"ERR invalid password") {
        format!("{said} Check the user and the password in --redis (WS_CLUSTER_REDIS)")
    } else if text.starts_with(b"ERR max number of clients") {
        format!("{said}: raise maxclients in Redis")
    } else {
        said.into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the commands sent, as text, when Redis answers each with the next of `replies`.
    fn talk_on(
        link: LinkName,
        url: &str,
        replies: &[Reply<'_>],
    ) -> (Vec<String>, Result<bool, String>) {
        let credentials = Credentials { url: url.parse().unwrap() };
        let mut facts = Facts::new(credentials.url.to_string(), 1 << 20);
        let mut out = Vec::new();
        let mut greeting = Greeting::start(link, &credentials, "me", &mut out);
        let mut said = Vec::new();
        for reply in replies {
            said.push(words(&mut out));
            let result = greeting.handle_reply(reply, &credentials, "me", &mut facts, &mut out);
            if let Err(error) = result {
                return (said, Err(error.to_string()));
            }
        }
        if !out.is_empty() {
            said.push(words(&mut out));
        }
        (said, Ok(greeting.is_done()))
    }

    fn talk(url: &str, replies: &[Reply<'_>]) -> (Vec<String>, Result<bool, String>) {
        talk_on(LinkName::Subscribe, url, replies)
    }

    fn words(out: &mut Vec<u8>) -> String {
        let text = String::from_utf8(std::mem::take(out)).unwrap();
        let is_word = |line: &&str| !line.starts_with(['*', '$']) && !line.is_empty();
        text.split("\r\n").filter(is_word).collect::<Vec<_>>().join(" ")
    }

    const OK: Reply<'static> = Reply::Simple(b"OK");
    const UNKNOWN: Reply<'static> = Reply::Error(b"ERR unknown command 'HELLO'");

    #[test]
    fn one_hello_says_it_all() {
        let done = Ok(true);
        let (said, result) = talk("redis://h", &[Reply::Other]);
        assert_eq!((said, &result), (vec!["HELLO 3 SETNAME me".into()], &done));
        let (said, result) = talk("redis://:p@h/2", &[Reply::Other, OK]);
        let expected = ["HELLO 3 AUTH default p SETNAME me", "SELECT 2"];
        assert_eq!((&said[..], &result), (&expected.map(String::from)[..], &done));
    }

    #[test]
    fn an_old_redis_is_greeted_in_its_own_way() {
        let (said, result) = talk("redis://u:p@h/2", &[UNKNOWN, OK, OK, OK]);
        assert_eq!(said[1..], ["AUTH u p", "CLIENT SETNAME me", "SELECT 2"].map(String::from));
        assert_eq!(result, Ok(true));
        let (said, result) = talk("redis://:p@h", &[UNKNOWN, OK, Reply::Error(b"NOPERM")]);
        assert_eq!(said[1..], ["AUTH p", "CLIENT SETNAME me"].map(String::from));
        assert_eq!(result, Ok(true), "a name is for people only");
    }

    #[test]
    fn a_refusal_names_the_fix() {
        let wrong = Reply::Error(b"WRONGPASS invalid username-password pair");
        let (_, result) = talk("redis://:p@h", &[wrong]);
        assert!(result.unwrap_err().contains("WS_CLUSTER_REDIS"));
        let missing = Reply::Error(b"NOAUTH HELLO must be called with the client authenticated");
        let (_, result) = talk("redis://h", &[missing]);
        assert!(result.unwrap_err().contains("redis://user:password@host"));
        let (_, result) = talk("redis://h", &[UNKNOWN, Reply::Error(b"NOAUTH required")]);
        assert!(result.is_err());
        let (_, result) = talk("redis://h/99", &[Reply::Other, Reply::Error(b"ERR DB index")]);
        assert_eq!(result, Err("Redis refused: ERR DB index".into()));
    }
    #[test]
    fn the_publishing_link_asks_what_redis_is() {
        let publish = LinkName::Publish;
        let master = Reply::Role { role: b"master", master: None };
        let setting = Reply::Parameter { name: b"proto-max-bulk-len", value: b"1" };
        let all =
            [Reply::Other, master, Reply::Other, setting, Reply::Other, Reply::Other, Reply::Other];
        let (said, result) = talk_on(publish, "redis://h", &all);
        let config = |name| format!("CONFIG GET {name}");
        assert_eq!(said[1], "ROLE");
        assert_eq!(said[2..], crate::wire::resp::PARAMETERS.map(config));
        assert_eq!(result, Ok(true));
        // A forbidden question is not asked again.
        let refused = Reply::Error(b"NOPERM");
        let (said, result) = talk_on(publish, "redis://h", &[Reply::Other, refused, refused]);
        assert_eq!((said.len(), result), (3, Ok(true)));
        let replica = Reply::Role { role: b"slave", master: Some((b"m", 1)) };
        let (_, result) = talk_on(publish, "redis://h", &[Reply::Other, replica]);
        assert!(result.unwrap_err().contains("replica of m:1"));
    }

    /// Any reply was accepted as the answer to any step.
    #[test]
    fn a_reply_of_another_kind_is_no_answer() {
        let number = Reply::Integer(1);
        for replies in [&[number][..], &[UNKNOWN, number], &[UNKNOWN, OK, number]] {
            let (_, result) = talk("redis://:p@h/2", replies);
            assert_eq!(result, Err(LinkError::Unasked.to_string()), "{replies:?}");
        }
    }
}
