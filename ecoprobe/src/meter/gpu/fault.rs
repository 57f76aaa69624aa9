//! What can go wrong with the driver, and what to do about it.

use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::nvmlReturn_enum_NVML_ERROR_GPU_NOT_FOUND as GPU_NOT_FOUND;

/// Why NVML cannot be used at all: one sentence, and whether it is simply not there.
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
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the library has no such function")]
    Missing,
    #[error("{0}")]
    Nvml(#[from] NvmlError),
    #[error("the library returned nonsense: {0}")]
    Nonsense(String),
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
    /// One line on how to mend a driver that does not start.
    pub(super) fn mend_start(&self) -> Option<&'static str> {
        match self {
            Self::Nvml(NvmlError::DriverNotLoaded) => Some(
                "load the driver (`modprobe nvidia`); in a container, start it with access to the \
                 GPUs",
            ),
            Self::Nvml(NvmlError::LibRmVersionMismatch) => Some(
                "the driver was updated while its old module is loaded: load the new one, or \
                 reboot",
            ),
            Self::Nvml(NvmlError::NoPermission) => {
                Some("run as root, or let this user open /dev/nvidiactl and /dev/nvidia*")
            }
            _ => None,
        }
    }

    pub(super) fn remedy(&self) -> Remedy {
        match self {
            Self::Missing | Self::Nvml(NvmlError::NotSupported) => Remedy::Forget,
            Self::Nvml(NvmlError::NotFound | NvmlError::NoData) => Remedy::Nothing,
            Self::Nvml(
                NvmlError::GpuLost
                | NvmlError::ResetRequired
                | NvmlError::Unknown
                | NvmlError::Timeout
                | NvmlError::IrqIssue
                | NvmlError::DriverNotLoaded
                | NvmlError::Uninitialized
                | NvmlError::InvalidArg
                // Which the wrapper does not know.
                | NvmlError::UnexpectedVariant(GPU_NOT_FOUND),
            ) => Remedy::Wait,
            Self::Nvml(_) | Self::Nonsense(_) => Remedy::Tell,
        }
    }
}
