//! How the nodes of a cluster divide the queue's channels among them.

use std::str::FromStr;

/// Which channels of the queue a node subscribes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// One per project: every node gets every push.
    Project,
    /// Also one per connected user: a push to a user goes only to the nodes of that user.
    User,
}

impl FromStr for Routing {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "project" => Ok(Self::Project),
            "user" => Ok(Self::User),
            _ => Err(()),
        }
    }
}
