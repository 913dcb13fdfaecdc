//! The environment of a node.

use std::str::FromStr;

/// How strict the node is. `Test` behaves like `Dev`, but shows nothing to strangers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Env {
    Dev,
    Test,
    Prod,
}

impl Env {
    /// Returns the name as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Test => "test",
            Self::Prod => "prod",
        }
    }

    /// Returns whether a signed request without `exp` is refused.
    pub fn demands_exp(self) -> bool {
        self == Self::Prod
    }

    /// Returns whether the answer to a wrong signature contains the text that should have been
    /// signed.
    pub fn shows_signed_text(self) -> bool {
        self == Self::Dev
    }
}

impl FromStr for Env {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "dev" => Ok(Self::Dev),
            "test" => Ok(Self::Test),
            "prod" => Ok(Self::Prod),
            _ => Err(()),
        }
    }
}
