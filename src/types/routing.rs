//! How the nodes of a cluster share the queue's channels out.

use std::str::FromStr;

/// Which channels of the queue a node listens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// One for each project: every node gets every push.
    Project,
    /// One for each connected user as well: a push to a user goes to the user's nodes alone.
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
