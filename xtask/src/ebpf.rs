//! `cargo xtask build-ebpf`: the BPF object, and the digest that ties it to its sources.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::{cargo, root, run, target_dir};

const TARGET: &str = "bpfel-unknown-none";
const PROGRAM: &str = "ecoprobe-probe";
const OBJECT: &str = "ecoprobe/bpf/probe.o";
const DIGEST: &str = "ecoprobe/bpf/probe.sha256";

/// Everything that the object is made of.
const SOURCES: &[&str] = &[
    "ecoprobe-ebpf/Cargo.toml",
    "ecoprobe-ebpf/src/lib.rs",
    "ecoprobe-ebpf/src/main.rs",
    "ecoprobe-ebpf/src/probe.rs",
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
        .args(["--release", "--package", "ecoprobe-ebpf", "--bin", PROGRAM, "--target", TARGET])
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags()?)
        .env_remove("RUSTFLAGS");
    run(&mut command)?;

    let built = target_dir.join(TARGET).join("release").join(PROGRAM);
    let path = root().join(OBJECT);
    fs::create_dir_all(path.parent().context("no parent")?)?;
    strip_dwarf(&built, &path)?;
    let object = fs::read(&path).context(OBJECT)?;
    fs::write(root().join(DIGEST), digests(&object)?)?;
    eprintln!("{OBJECT}: {} bytes", object.len());
    Ok(())
}

pub(crate) fn check() -> Result<()> {
    let object = fs::read(root().join(OBJECT)).context(OBJECT)?;
    let committed = fs::read_to_string(root().join(DIGEST)).context(DIGEST)?;
    ensure!(
        committed == digests(&object)?,
        "{OBJECT} does not match its sources; run `cargo xtask build-ebpf` and commit the result"
    );
    eprintln!("{OBJECT} matches its sources");
    Ok(())
}

fn digests(object: &[u8]) -> Result<String> {
    let mut sources = Sha256::new();
    for name in SOURCES {
        let text = fs::read(root().join(name)).with_context(|| name.to_string())?;
        sources.update((text.len() as u64).to_le_bytes());
        sources.update(text);
    }
    for package in bpf_packages()? {
        sources.update(package);
    }
    Ok(format!("sources {:x}\nobject {:x}\n", sources.finalize(), Sha256::digest(object)))
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
