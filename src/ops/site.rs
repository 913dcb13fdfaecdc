//! The sites of the ops ports.

use super::reload;

/// What answers on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    Metrics,
    Pprof,
    /// The live page, Swagger UI and the API descriptions.
    Pages,
}

impl Site {
    /// Returns the site of this path; `None`: no site has it.
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/metrics" => Some(Self::Metrics),
            "/live.json" | reload::PATH => Some(Self::Pages),
            _ if path.starts_with("/debug/pprof") => Some(Self::Pprof),
            _ if path.starts_with("/swagger") => Some(Self::Pages),
            _ => None,
        }
    }

    /// Returns the flag that chooses its port.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Metrics => "--prometheus_port",
            Self::Pprof => "--pprof_port",
            Self::Pages => "--swagger_port",
        }
    }
}
