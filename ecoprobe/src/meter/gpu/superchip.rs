//! One counter, several views: GPUs that share a module with a CPU.
//!
//! On Grace Hopper the energy counter that NVML gives for the GPU counts the whole module: CPU, its
//! memory and losses included (found by Zeus on a GH200, ml-energy/zeus pull request 172; NVIDIA
//! documents only that power has scopes, GPU and module). Summed up with a measurement of the CPU it
//! would count that twice, and billed by use of the GPU it would be billed to the wrong ones. So where
//! there is a module, the GPU's energy is the integral of the power that is its own; of the power
//! readings it is documented that they are the GPU's, unless the module is asked for.
//!
//! Whether other such chips' counters (GB200, GB300) are the module's as well is not known to us:
//! they are treated alike, because an integral of the right power is off by little, and a counter of
//! something else by a lot.

/// What is known of a device.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Facts<'a> {
    pub(super) name: &'a str,
    /// Its own power, and that of its module, at the same time, watts; `None` where the driver does
    /// not tell. Drivers that do not know of modules give the GPU's for both.
    pub(super) gpu_watts: Option<f64>,
    pub(super) module_watts: Option<f64>,
}

/// By how much a module's power exceeds the GPU's at least: more than two readings of one sensor
/// differ when they follow each other at once.
const MORE: f64 = 1.25;
const MORE_WATTS: f64 = 10.0;

/// Whether the device's energy counter may hold the energy of a CPU.
pub(super) fn counts_a_module(facts: Facts) -> bool {
    let more = facts.gpu_watts.zip(facts.module_watts);
    is_named_so(facts.name) || more.is_some_and(|(gpu, all)| all > MORE * gpu + MORE_WATTS)
}

/// GH200, GB200, GB300, GB10: letters of a Grace CPU with a GPU, and a number.
fn is_named_so(name: &str) -> bool {
    name.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| {
        let number = word.strip_prefix("GH").or_else(|| word.strip_prefix("GB"));
        number.is_some_and(|n| n.len() >= 2 && n.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_chips_that_hold_a_cpu() {
        for (name, is) in [
            ("NVIDIA GH200 480GB", true),
            ("NVIDIA GH200 144G HBM3e", true),
            ("NVIDIA GB200", true),
            ("NVIDIA GB10", true),
            ("NVIDIA H100 80GB HBM3", false),
            ("NVIDIA B200", false),
            ("NVIDIA A100-SXM4-40GB", false),
            ("NVIDIA GeForce GTX 1080", false),
            ("GB", false),
            ("", false),
        ] {
            assert_eq!(counts_a_module(Facts { name, ..Facts::default() }), is, "{name}");
        }
    }

    #[test]
    fn a_module_shows_by_drawing_more_than_its_gpu() {
        let counts = |gpu_watts, module_watts| {
            counts_a_module(Facts { name: "NVIDIA X1", gpu_watts, module_watts })
        };
        assert!(counts(Some(100.0), Some(250.0)));
        // A driver that gives the GPU's power for both, or does not know modules.
        assert!(!counts(Some(100.0), Some(100.0)));
        assert!(!counts(Some(100.0), Some(103.0)));
        assert!(!counts(Some(5.0), Some(9.0)));
        assert!(!counts(Some(100.0), None));
        assert!(!counts(None, Some(250.0)));
    }
}
