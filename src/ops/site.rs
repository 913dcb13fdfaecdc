//! The sites of the ops ports.

/// What answers on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    Metrics,
    Pprof,
    /// The live page, Swagger UI, and the descriptions of the APIs.
    Pages,
}

impl Site {
    /// Where something of that path is; `None`: on none of them.
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/metrics" => Some(Self::Metrics),
            "/live.json" => Some(Self::Pages),
            _ if path.starts_with("/debug/pprof") => Some(Self::Pprof),
            _ if path.starts_with("/swagger") => Some(Self::Pages),
            _ => None,
        }
    }

    /// The flag that chooses its port.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Metrics => "--prometheus_port",
            Self::Pprof => "--pprof_port",
            Self::Pages => "--swagger_port",
        }
    }
}
