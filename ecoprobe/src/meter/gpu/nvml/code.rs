//! NVML's return codes: what they mean for us, and in words.

use nvml_wrapper_sys::bindings::*;

use crate::meter::gpu::fault::{Fault, Kind};

/// The words of `nvmlErrorString`, but for what a reader can do something about. Not asked of the
/// library: that would be one more pointer of its own to trust.
pub(super) fn fault(code: nvmlReturn_t) -> Fault {
    let (kind, words) = match code {
        nvmlReturn_enum_NVML_ERROR_UNINITIALIZED => {
            (Kind::NotLoaded, "the library is not initialised")
        }
        // What a driver says about a device that is not there any more.
        nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT => (Kind::Unreachable, "no such device"),
        nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED => {
            (Kind::Unsupported, "the device does not support it")
        }
        nvmlReturn_enum_NVML_ERROR_NO_PERMISSION => {
            (Kind::Denied, "this user does not have permission")
        }
        nvmlReturn_enum_NVML_ERROR_NOT_FOUND => (Kind::NoData, "nothing was found"),
        nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_POWER => {
            (Kind::Unreachable, "the device's power cables are not attached")
        }
        nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED => {
            (Kind::NotLoaded, "the NVIDIA driver is not loaded")
        }
        nvmlReturn_enum_NVML_ERROR_TIMEOUT => (Kind::Unreachable, "the driver timed out"),
        nvmlReturn_enum_NVML_ERROR_IRQ_ISSUE => {
            (Kind::Unreachable, "the kernel has a problem with the device's interrupts")
        }
        nvmlReturn_enum_NVML_ERROR_LIBRARY_NOT_FOUND => {
            (Kind::Other, "the driver misses a library of its own")
        }
        nvmlReturn_enum_NVML_ERROR_FUNCTION_NOT_FOUND => {
            (Kind::Unsupported, "this version of the driver does not know the function")
        }
        nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST => {
            (Kind::Unreachable, "the device has fallen off the bus or cannot be reached")
        }
        nvmlReturn_enum_NVML_ERROR_RESET_REQUIRED => {
            (Kind::Unreachable, "the device must be reset")
        }
        nvmlReturn_enum_NVML_ERROR_OPERATING_SYSTEM => {
            (Kind::Other, "the operating system refused the driver's request")
        }
        nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH => {
            (Kind::Mismatch, "the library and the loaded driver are of different versions")
        }
        nvmlReturn_enum_NVML_ERROR_IN_USE => (Kind::Other, "the device is in use"),
        nvmlReturn_enum_NVML_ERROR_MEMORY => (Kind::Other, "out of memory"),
        nvmlReturn_enum_NVML_ERROR_NO_DATA => (Kind::NoData, "there is no data"),
        nvmlReturn_enum_NVML_ERROR_NOT_READY => (Kind::NoData, "the device is not ready"),
        nvmlReturn_enum_NVML_ERROR_GPU_NOT_FOUND => (Kind::Unreachable, "no such device"),
        nvmlReturn_enum_NVML_ERROR_UNKNOWN => {
            (Kind::Unreachable, "an internal error of the driver")
        }
        code => {
            return Fault::Told { kind: Kind::Other, words: format!("NVML's error {code}") };
        }
    };
    Fault::Told { kind, words: words.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::gpu::fault::Remedy;

    #[test]
    fn codes_that_are_known_and_one_that_is_not() {
        assert_eq!(fault(3).remedy(), Remedy::Forget);
        assert_eq!(fault(6).remedy(), Remedy::Nothing);
        assert_eq!(fault(4).remedy(), Remedy::Tell);
        for gone in [1, 2, 10, 15, 16, 28, 999] {
            assert_eq!(fault(gone).remedy(), Remedy::Wait, "{gone}");
        }
        assert_eq!(fault(77).to_string(), "NVML's error 77");
        assert_eq!(fault(77).remedy(), Remedy::Tell);
    }
}
