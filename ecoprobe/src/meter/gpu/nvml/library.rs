//! Finding and loading the library. What the dynamic linker finds is what will be used, so it is the
//! linker that is asked, not its cache.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::path::Path;

use nvml_wrapper_sys::bindings::NvmlLib;

use crate::host::stdout;
use crate::meter::gpu::fault::OpenError;

/// What the dynamic linker looks for when no library is named.
const SYSTEM_LIBRARY: &str = "libnvidia-ml.so.1";

/// A loaded NVML library, not initialised.
pub(in crate::meter::gpu) struct Library {
    /// Never unloaded: drivers keep threads and exit handlers of their own.
    functions: ManuallyDrop<NvmlLib>,
    shown: String,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Library").field(&self.shown).finish()
    }
}

impl Deref for Library {
    type Target = NvmlLib;

    fn deref(&self) -> &NvmlLib {
        &self.functions
    }
}

impl Library {
    /// Loads a library and looks up its functions; standard output is out of its reach from then on.
    pub(in crate::meter::gpu) fn load(path: Option<&Path>) -> Result<Self, OpenError> {
        let file = path.unwrap_or(Path::new(SYSTEM_LIBRARY));
        let shown = file.display().to_string();
        stdout::keep_from_libraries();
        // SAFETY: loading runs the library's initialisers; the user named it, or the system's
        // loader vouches for it.
        let functions = ManuallyDrop::new(unsafe { NvmlLib::new(file) }.map_err(|error| {
            let message = format!("cannot load the NVML library {shown}: {error}");
            OpenError::new(path.is_none(), message)
        })?);
        let needed = [
            ("nvmlInit_v2", functions.nvmlInit_v2.is_ok()),
            ("nvmlDeviceGetCount_v2", functions.nvmlDeviceGetCount_v2.is_ok()),
            ("nvmlDeviceGetHandleByIndex_v2", functions.nvmlDeviceGetHandleByIndex_v2.is_ok()),
            ("nvmlDeviceGetUUID", functions.nvmlDeviceGetUUID.is_ok()),
        ];
        if let Some((symbol, _)) = needed.iter().find(|(_, found)| !found) {
            let message = format!("{shown} is not an NVML library that works: it lacks {symbol}");
            return Err(OpenError::new(false, message));
        }
        Ok(Self { functions, shown })
    }

    /// What was asked for: a path, or a name for the linker to find.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }
}
