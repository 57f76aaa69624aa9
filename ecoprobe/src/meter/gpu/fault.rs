//! What can go wrong with the driver, and what to do about it.

/// Why a driver cannot be used at all: one sentence, and whether it is simply not there.
#[derive(Debug)]
pub(super) struct OpenError {
    pub(super) absent: bool,
    pub(super) message: String,
    /// One line, for `doctor`.
    pub(super) mend: &'static str,
}

impl OpenError {
    pub(super) fn new(absent: bool, message: String) -> Self {
        let mend = "check that the NVIDIA driver works (`nvidia-smi`), or name its library with \
                    --nvml-lib";
        Self { absent, message, mend }
    }
}

/// Why one call did not give its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("the library has no such function")]
    Missing,
    /// The driver's own answer.
    #[error("{words}")]
    Told { kind: Kind, words: String },
    #[error("the library returned nonsense: {0}")]
    Nonsense(String),
}

/// What a driver's error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// This device cannot do it.
    Unsupported,
    Denied,
    /// There is nothing to tell.
    NoData,
    /// The device does not answer.
    Unreachable,
    /// There is no driver to talk to (any more).
    NotLoaded,
    /// The library and the loaded driver are of different versions.
    Mismatch,
    Other,
}

/// What to do about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Never ask this device again.
    Forget,
    /// The device does not answer: its books stop until it does.
    Wait,
    /// Permission is missing, or the answer made no sense: say so, and do without.
    Tell,
    /// Nothing to report since last time.
    Nothing,
}

impl Fault {
    pub(super) fn kind(&self) -> Option<Kind> {
        match self {
            Self::Told { kind, .. } => Some(*kind),
            Self::Missing | Self::Nonsense(_) => None,
        }
    }

    pub(super) fn remedy(&self) -> Remedy {
        match self {
            Self::Missing => Remedy::Forget,
            Self::Nonsense(_) => Remedy::Tell,
            Self::Told { kind, .. } => match kind {
                Kind::Unsupported => Remedy::Forget,
                Kind::NoData => Remedy::Nothing,
                Kind::Unreachable | Kind::NotLoaded => Remedy::Wait,
                Kind::Denied | Kind::Mismatch | Kind::Other => Remedy::Tell,
            },
        }
    }

    /// One line on how to mend a driver that does not start.
    pub(super) fn mend_start(&self) -> Option<&'static str> {
        match self.kind()? {
            Kind::NotLoaded => Some(
                "load the driver (`modprobe nvidia`); in a container, start it with access to the \
                 GPUs",
            ),
            Kind::Mismatch => Some(
                "the driver was updated while its old module is loaded: load the new one, or \
                 reboot",
            ),
            Kind::Denied => {
                Some("run as root, or let this user open /dev/nvidiactl and /dev/nvidia*")
            }
            _ => None,
        }
    }
}
