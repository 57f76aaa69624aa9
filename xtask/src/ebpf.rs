//! `cargo xtask build-ebpf`: the BPF objects, and whether the committed ones are what their sources
//! make.
//!
//! The build is reproducible: the same compiler and linker give the same bytes, wherever the checkout
//! and the target directory are. Paths are remapped before they get into the debug information that
//! BTF is made from, the DWARF itself is dropped, crates are those of `Cargo.lock`, cargo derives
//! symbol names from paths relative to the workspace, there is one codegen unit, and no flags are
//! taken over from outside. So the check is to build again and to compare.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::{cargo, root, run, target_dir};

const TARGET: &str = "bpfel-unknown-none";

struct Object {
    /// Name of the binary.
    program: &'static str,
    features: &'static str,
    path: &'static str,
}

/// The probe, which the agent embeds, with barriers and without, and the programs that its cost is
/// measured against.
const OBJECTS: [Object; 3] = [
    Object { program: "ecoprobe-probe", features: "", path: "ecoprobe/bpf/probe.o" },
    Object {
        program: "ecoprobe-probe",
        features: "barriers",
        path: "ecoprobe/bpf/probe-barriers.o",
    },
    Object { program: "ecoprobe-reference", features: "", path: "benches/bpf/reference.o" },
];
const DIGESTS: &str = "ecoprobe/bpf/sha256";
/// Everything below is a source.
const SOURCES: &str = "ecoprobe-ebpf";

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

/// Builds the objects and puts them where they are embedded.
pub(crate) fn build() -> Result<()> {
    let tools = Tools::find()?;
    for object in &OBJECTS {
        let path = root().join(object.path);
        fs::create_dir_all(path.parent().context("no parent")?)?;
        tools.build(object, &path)?;
    }
    let digests = digests(&tools.version)?;
    fs::write(root().join(DIGESTS), &digests)?;
    eprint!("{digests}");
    Ok(())
}

/// Builds the objects again and compares; without a BPF toolchain, compares digests.
pub(crate) fn check() -> Result<()> {
    let committed = fs::read_to_string(root().join(DIGESTS)).context(DIGESTS)?;
    let built_with = committed.lines().next().unwrap_or_default().to_owned();
    ensure!(
        committed == digests(&built_with)?,
        "{SOURCES} or the committed BPF objects have changed since they were built; run `cargo \
         xtask build-ebpf` and commit the result"
    );
    let tools = match Tools::find() {
        Ok(tools) => tools,
        Err(why) => {
            eprintln!("{why:#}");
            eprintln!(
                "NOT rebuilt: only their digests were compared, which are those of the committed \
                 BPF objects and sources"
            );
            return Ok(());
        }
    };
    let again = target_dir().join("bpf/again.o");
    for object in &OBJECTS {
        tools.build(object, &again)?;
        ensure!(
            fs::read(&again)? == fs::read(root().join(object.path))?,
            "{}: building it again gives other bytes. It was built with {built_with}; here is {}. \
             Run `cargo xtask build-ebpf` and commit the result",
            object.path,
            tools.version
        );
    }
    eprintln!("built again with {}: the committed BPF objects are the same", tools.version);
    Ok(())
}

/// A compiler and a linker.
struct Tools {
    toolchain: Toolchain,
    version: String,
}

impl Tools {
    fn find() -> Result<Self> {
        let toolchain = Toolchain::find()?;
        let linker = output(Command::new("bpf-linker").arg("--version")).context(NO_LINKER)?;
        let mut rustc = match &toolchain {
            Toolchain::Prebuilt(rustc) => Command::new(rustc),
            Toolchain::Nightly => {
                let mut rustup = Command::new("rustup");
                rustup.args(["run", "nightly", "rustc"]);
                rustup
            }
        };
        let rustc = output(rustc.arg("--version")).context("the compiler has no version")?;
        Ok(Self { toolchain, version: format!("{rustc}, {linker}") })
    }

    fn build(&self, object: &Object, to: &Path) -> Result<()> {
        let target_dir = target_dir().join("bpf");
        let mut command = match &self.toolchain {
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
            .args(["--quiet", "--locked", "--release", "--target", TARGET])
            .args(["--package", SOURCES, "--bin", object.program, "--features", object.features])
            .env("CARGO_TARGET_DIR", &target_dir)
            // Whatever the agent itself is built with.
            .env("CARGO_PROFILE_RELEASE_LTO", "thin")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_INCREMENTAL", "0")
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags()?)
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER");
        run(&mut command)?;
        strip_dwarf(&target_dir.join(TARGET).join("release").join(object.program), to)
    }
}

/// What stands beside the objects: what they were built with and from, and what they are.
fn digests(version: &str) -> Result<String> {
    let mut sources = Sha256::new();
    for path in sources_below(&root().join(SOURCES))? {
        let text = fs::read(&path).with_context(|| path.display().to_string())?;
        let name = path.strip_prefix(root())?.to_string_lossy().into_owned();
        for part in [name.as_bytes(), &text] {
            sources.update((part.len() as u64).to_le_bytes());
            sources.update(part);
        }
    }
    for package in bpf_packages()? {
        sources.update(package);
    }
    let mut digests = format!("{version}\n{:x}  {SOURCES}\n", sources.finalize());
    for Object { path, .. } in &OBJECTS {
        let bytes = fs::read(root().join(path)).context(*path)?;
        digests.push_str(&format!("{:x}  {path}\n", Sha256::digest(bytes)));
    }
    Ok(digests)
}

/// All files, sorted, but for tests.
fn sources_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            if !path.ends_with("tests") {
                found.extend(sources_below(&path)?);
            }
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
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
