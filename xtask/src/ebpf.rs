//! `cargo xtask build-ebpf`: the BPF object, and the digest that ties it to its sources.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::{cargo, root, run, target_dir};

const TARGET: &str = "bpfel-unknown-none";
/// The probe, which the agent embeds, and the programs that its cost is measured against.
const OBJECTS: &[(&str, &str)] = &[
    ("ecoprobe-probe", "ecoprobe/bpf/probe.o"),
    ("ecoprobe-reference", "benches/bpf/reference.o"),
];
const DIGESTS: &str = "ecoprobe/bpf/sha256";

/// Everything that the objects are made of.
const SOURCES: &[&str] = &[
    "ecoprobe-ebpf/Cargo.toml",
    "ecoprobe-ebpf/src/lib.rs",
    "ecoprobe-ebpf/src/main.rs",
    "ecoprobe-ebpf/src/probe.rs",
    "ecoprobe-ebpf/src/reference.rs",
];

const NO_TOOLCHAIN: &str = "\
no BPF toolchain found. Either of these will do:
  a distribution's compiler with the BPF target's core library; on Debian 12 (with its security
  updates) or 13:
      apt-get install rustc-web libstd-rust-web-dev-bpf
  a rustup nightly with the standard library's sources:
      rustup toolchain install nightly --component rust-src
ecoprobe itself builds without: the object is committed.";

const NO_LINKER: &str = "\
no bpf-linker found. It needs LLVM 22 or newer; on Debian:
      apt-get install llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev libxml2-dev
      LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 \\
          --no-default-features --features llvm-22
ecoprobe itself builds without: the object is committed.";

enum Toolchain {
    /// A compiler with a prebuilt `core` for BPF.
    Prebuilt(PathBuf),
    /// rustup's nightly, which builds `core` itself.
    Nightly,
}

impl Toolchain {
    fn find() -> Result<Self> {
        let named = std::env::var_os("ECOPROBE_BPF_RUSTC").map(PathBuf::from);
        let candidates = named.into_iter().chain([PathBuf::from("/usr/bin/rustc")]);
        for rustc in candidates {
            if has_core(&rustc) {
                return Ok(Self::Prebuilt(rustc));
            }
        }
        let sysroot = output(
            Command::new("rustup").args(["run", "nightly", "rustc"]).args(["--print", "sysroot"]),
        );
        let sources =
            sysroot.map(|path| Path::new(&path).join("lib/rustlib/src/rust/library/core"));
        match sources {
            Some(core) if core.exists() => Ok(Self::Nightly),
            _ => bail!(NO_TOOLCHAIN),
        }
    }
}

fn has_core(rustc: &Path) -> bool {
    let libdir =
        Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    let Ok(libdir) = libdir else { return false };
    let libdir = String::from_utf8_lossy(&libdir.stdout).trim().to_owned();
    let Ok(entries) = fs::read_dir(libdir) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

pub(crate) fn build() -> Result<()> {
    let toolchain = Toolchain::find()?;
    ensure!(output(Command::new("bpf-linker").arg("--version")).is_some(), NO_LINKER);

    let target_dir = target_dir().join("bpf");
    let mut command = match &toolchain {
        Toolchain::Prebuilt(rustc) => {
            let mut command = cargo();
            // aya-ebpf uses an unstable feature.
            command.arg("build").env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            command
        }
        Toolchain::Nightly => {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
            command.current_dir(root());
            command
        }
    };
    command
        .args(["--release", "--package", "ecoprobe-ebpf", "--bins", "--target", TARGET])
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags()?)
        .env_remove("RUSTFLAGS");
    run(&mut command)?;

    for (program, object) in OBJECTS {
        let path = root().join(object);
        fs::create_dir_all(path.parent().context("no parent")?)?;
        strip_dwarf(&target_dir.join(TARGET).join("release").join(program), &path)?;
    }
    fs::write(root().join(DIGESTS), digests()?)?;
    eprint!("{}", digests()?);
    Ok(())
}

pub(crate) fn check() -> Result<()> {
    let committed = fs::read_to_string(root().join(DIGESTS)).context(DIGESTS)?;
    ensure!(
        committed == digests()?,
        "the committed BPF objects do not match their sources; run `cargo xtask build-ebpf` and \
         commit the result"
    );
    eprintln!("the committed BPF objects match their sources");
    Ok(())
}

fn digests() -> Result<String> {
    let mut sources = Sha256::new();
    for name in SOURCES {
        let text = fs::read(root().join(name)).context(*name)?;
        sources.update((text.len() as u64).to_le_bytes());
        sources.update(text);
    }
    for package in bpf_packages()? {
        sources.update(package);
    }
    let mut digests = format!("{:x}  sources\n", sources.finalize());
    for (_, object) in OBJECTS {
        let bytes = fs::read(root().join(object)).context(*object)?;
        digests.push_str(&format!("{:x}  {object}\n", Sha256::digest(bytes)));
    }
    Ok(digests)
}

/// The locked versions of the crates that end up in the object.
fn bpf_packages() -> Result<Vec<String>> {
    let lock = fs::read_to_string(root().join("Cargo.lock")).context("Cargo.lock")?;
    let packages = lock.split("[[package]]");
    let of_bpf =
        ["aya-ebpf", "aya-log-ebpf", "aya-log-common"].map(|name| format!("name = \"{name}"));
    Ok(packages
        .filter(|package| of_bpf.iter().any(|name| package.trim_start().starts_with(name)))
        .map(|package| package.lines().filter(|line| line.contains('=')).take(2).collect())
        .collect())
}

/// BTF needs debug information; the paths in it are nobody's business.
fn rustflags() -> Result<OsString> {
    let mut flags = vec!["-Cdebuginfo=2".to_owned(), "-Clink-arg=--btf".to_owned()];
    let mut remap = |from: &Path, to: &str| {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    };
    remap(&root(), "ecoprobe");
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME").map_or(home.join(".cargo"), PathBuf::from);
    if let Ok(registries) = fs::read_dir(cargo_home.join("registry/src")) {
        for registry in registries.flatten() {
            remap(&registry.path(), "crates");
        }
    }
    Ok(flags.join("\x1f").into())
}

/// The kernel reads `.BTF`; nobody reads the DWARF that it was made from.
fn strip_dwarf(from: &Path, to: &Path) -> Result<()> {
    let prefix = std::env::var_os("LLVM_PREFIX").unwrap_or_else(|| "/usr/lib/llvm-22".into());
    let tools = [Path::new(&prefix).join("bin/llvm-objcopy"), PathBuf::from("llvm-objcopy")];
    let tool = tools.iter().find(|tool| output(Command::new(tool).arg("--version")).is_some());
    let tool =
        tool.context("no llvm-objcopy found; it comes with LLVM, which bpf-linker needs too")?;
    run(Command::new(tool).arg("--strip-debug").args([from, to]))
}
