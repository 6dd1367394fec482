//! Devices by name, and what is announced of them.

use super::fused::Precision;

/// Why a device cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// A device of a backend that was not built in.
    #[error(
        "device {name:?} needs the {feature} backend, and this binary was built without it; build with \
         `--features {feature}` (deploy/README.md says how), or use \"flex\""
    )]
    NotBuilt {
        /// What was asked for.
        name: String,
        /// The feature that has it.
        feature: &'static str,
    },
    /// A GPU that is not there.
    #[error(
        "device {name:?} is not there: LibTorch sees {count} CUDA devices; give another number, or use \"tch:cpu\" \
         where neither the driver nor a LibTorch with CUDA is installed"
    )]
    NoGpu {
        /// What was asked for.
        name: String,
        /// How many there are.
        count: i64,
    },
    /// Another LibTorch than that of the build.
    #[error(
        "{path} is LibTorch {found}, and this binary was built against {built}; name the lib folder of that one in \
         LD_LIBRARY_PATH"
    )]
    LibTorchVersion {
        /// The library that was loaded.
        path: String,
        /// Its version.
        found: String,
        /// The version of the build.
        built: String,
    },
    /// Arithmetic that the device does not have.
    #[error("device {name:?} cannot be used: {reason}; leave \"{suffix}\" out for 32-bit floats")]
    Precision {
        /// What was asked for.
        name: String,
        /// How its name asks for it.
        suffix: &'static str,
        /// What is missing.
        reason: &'static str,
    },
    /// Anything else.
    #[error(
        "unknown device {name:?}; use \"auto\", \"flex\", \"tch:cpu\", \"tch:cuda:N\" or \"cuda:N\", with \"+bf16\" or \"+f16\" \
         behind it for products of 16-bit floats"
    )]
    Unknown {
        /// What was asked for.
        name: String,
    },
}

/// The first compute capability of NVIDIA GPUs that has fast products of bfloat16, and of float16.
const BF16_CAPABILITY: f32 = 8.0;
const F16_CAPABILITY: f32 = 7.0;
/// Version of burn in the workspace's manifest.
const BURN_VERSION: &str = "0.22.1";

/// Where tensors live and what computes with them. Always passed explicitly: burn's default device depends on what
/// the binary was built with.
#[derive(Clone, Debug)]
pub struct Device {
    name: String,
    pub(super) inner: burn::tensor::Device,
    pub(super) precision: Precision,
}

impl Device {
    /// The pure-Rust CPU backend.
    pub fn flex() -> Self {
        Self::exact("flex", burn::tensor::Device::flex())
    }

    fn exact(name: &str, inner: burn::tensor::Device) -> Self {
        Self { name: name.to_owned(), inner, precision: Precision::F32 }
    }

    /// The device of a name: "flex", a device of a backend that is built in, or "auto" for the best that is built in and
    /// there: a CUDA device of LibTorch, LibTorch on the CPU, flex. "+bf16" or "+f16" behind it has an encoder's products
    /// computed with such floats.
    pub fn parse(name: &str) -> Result<Self, DeviceError> {
        for precision in [Precision::Bf16, Precision::F16] {
            let suffix = precision.suffix();
            let Some(exact) = name.strip_suffix(suffix) else { continue };
            let mut device = Self::parse(exact)?;
            if device.precision != Precision::F32 {
                return Err(DeviceError::Unknown { name: name.to_owned() });
            }
            let refused = |reason| DeviceError::Precision { name: name.to_owned(), suffix, reason };
            device.check(precision).map_err(refused)?;
            device.name.push_str(suffix);
            device.precision = precision;
            return Ok(device);
        }
        let unknown = || DeviceError::Unknown { name: name.to_owned() };
        let index = |text: &str| text.parse::<u16>().map(usize::from).map_err(|_| unknown());
        match name.split(':').collect::<Vec<_>>()[..] {
            ["auto"] => Self::best(),
            ["flex"] => Ok(Self::flex()),
            ["tch", "cpu"] => libtorch(name, None),
            ["tch", "cuda", number] => libtorch(name, Some(index(number)?)),
            ["cuda", number] => cuda(name, index(number)?),
            _ => Err(unknown()),
        }
    }

    #[cfg(feature = "tch")]
    fn best() -> Result<Self, DeviceError> {
        if tch::Cuda::is_available() { libtorch("tch:cuda:0", Some(0)) } else { libtorch("tch:cpu", None) }
    }

    #[cfg(not(feature = "tch"))]
    fn best() -> Result<Self, DeviceError> {
        Ok(Self::flex())
    }

    /// Its name: what [`Device::parse`] takes, never "auto".
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The backend and kind of device, without its number: what its bits may depend on.
    pub fn backend(&self) -> String {
        format!("{}{}", self.kind(), self.precision.suffix())
    }

    /// [`Device::backend`] without its precision.
    fn kind(&self) -> &str {
        match self.exact_name().rsplit_once(':') {
            Some((kind, number)) if number.parse::<u16>().is_ok() => kind,
            _ => self.exact_name(),
        }
    }

    /// [`Device::name`] without its precision.
    fn exact_name(&self) -> &str {
        self.name.strip_suffix(self.precision.suffix()).unwrap_or(&self.name)
    }

    /// Whether its products of such floats are faster than exact ones: elsewhere they are emulated, many times slower.
    fn check(&self, precision: Precision) -> Result<(), &'static str> {
        match (self.kind(), precision) {
            ("flex", _) => Err("flex computes with 32-bit floats alone"),
            ("tch:cpu", Precision::F16) => Err("LibTorch emulates float16 on processors"),
            ("tch:cpu", _) if instructions().ends_with("AMX") || instructions().ends_with("bf16") => Ok(()),
            ("tch:cpu", _) => Err("this processor has no instructions for bfloat16"),
            // burn's own gradients would be float16 too, in which small ones vanish.
            ("cuda", Precision::F16) => Err("only LibTorch computes with float16 here"),
            (_, Precision::F16) => {
                self.check_capability(F16_CAPABILITY, "this GPU has no fast products of float16")
            }
            _ => self.check_capability(BF16_CAPABILITY, "this GPU has no fast products of bfloat16"),
        }
    }

    /// Whether the GPU has a compute capability, as far as its driver tells.
    fn check_capability(&self, least: f32, reason: &'static str) -> Result<(), &'static str> {
        let capability = self.gpu().and_then(|number| ask_gpu(number, "compute_cap"));
        match capability.and_then(|text| text.trim().parse::<f32>().ok()) {
            Some(capability) if capability < least => Err(reason),
            _ => Ok(()),
        }
    }

    /// What it computes with: library, version, and the instructions or the GPU that kernels are picked by.
    pub fn kernels(&self) -> String {
        let library = match self.kind() {
            "flex" => format!("burn-flex {BURN_VERSION}, retort {}", env!("CARGO_PKG_VERSION")),
            "cuda" => format!("burn-cuda {BURN_VERSION}"),
            _ => format!("LibTorch {}, burn-tch {BURN_VERSION}", libtorch_version()),
        };
        let hardware = match self.gpu() {
            Some(number) => gpu(number).map_or_else(|| "unknown GPU".to_owned(), |(name, _)| name),
            None => instructions().to_owned(),
        };
        format!("{library}, {hardware}")
    }

    /// Bytes of its memory; 0 when unknown. A container's limit counts as the host's memory.
    pub fn memory_bytes(&self) -> u64 {
        match self.gpu() {
            Some(number) => gpu(number).map_or(0, |(_, bytes)| bytes),
            None => host_memory().unwrap_or(0),
        }
    }

    /// Has it compute on so many threads. Rayon's global pool, which flex uses, is the process's own to make.
    pub fn use_threads(&self, threads: usize) {
        #[cfg(feature = "tch")]
        if self.kind().starts_with("tch") {
            tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
        }
        let _ = threads;
    }

    fn gpu(&self) -> Option<&str> {
        self.exact_name().rsplit_once("cuda:").map(|(_, number)| number)
    }
}

#[cfg(feature = "tch")]
// burn announces the end of its LibTorch backend in a later version; this one is pinned.
#[allow(deprecated)]
fn libtorch(name: &str, gpu: Option<usize>) -> Result<Device, DeviceError> {
    check_libtorch()?;
    let inner = match gpu {
        None => burn::tensor::Device::libtorch(),
        Some(number) => {
            let count = if tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 };
            if i64::try_from(number).unwrap_or(i64::MAX) >= count {
                return Err(DeviceError::NoGpu { name: name.to_owned(), count });
            }
            burn::tensor::Device::libtorch_cuda(number)
        }
    };
    Ok(Device::exact(name, inner))
}

#[cfg(not(feature = "tch"))]
fn libtorch(name: &str, _: Option<usize>) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { name: name.to_owned(), feature: "tch" })
}

#[cfg(feature = "cuda")]
fn cuda(name: &str, number: usize) -> Result<Device, DeviceError> {
    Ok(Device::exact(name, burn::tensor::Device::cuda(number)))
}

#[cfg(not(feature = "cuda"))]
fn cuda(name: &str, _: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { name: name.to_owned(), feature: "cuda" })
}

/// Version of the LibTorch that was built against, as its folder's `torch-version` says.
fn libtorch_version() -> &'static str {
    option_env!("RETORT_LIBTORCH_VERSION").unwrap_or("unknown")
}

/// Whether the library that the loader found is that of the build, as far as the files beside it tell.
#[cfg(feature = "tch")]
fn check_libtorch() -> Result<(), DeviceError> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let loaded = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    let Some(path) = loaded.into_iter().find(|path| path.ends_with("/libtorch_cpu.so")) else {
        return Ok(());
    };
    let folder = std::path::Path::new(path).parent().and_then(std::path::Path::parent);
    let version = folder.and_then(|folder| std::fs::read_to_string(folder.join("torch-version")).ok());
    match version.as_deref().map(str::trim) {
        Some(found) if found != libtorch_version() => Err(DeviceError::LibTorchVersion {
            path: path.to_owned(),
            found: found.to_owned(),
            built: libtorch_version().to_owned(),
        }),
        _ => Ok(()),
    }
}

/// The vector instructions by which CPU kernels are picked.
fn instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        let amx = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" amx_bf16"));
        if amx {
            "AVX-512 with AMX"
        } else if is_x86_feature_detected!("avx512bf16") {
            "AVX-512 with bf16"
        } else if is_x86_feature_detected!("avx512f") {
            "AVX-512"
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            "AVX2"
        } else {
            "SSE2"
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        std::env::consts::ARCH
    }
}

/// The host's memory, or what a control group leaves of it.
fn host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let host = line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    Some(limit.map_or(host, |limit| limit.min(host)))
}

/// Name and bytes of a GPU.
fn gpu(number: &str) -> Option<(String, u64)> {
    let line = ask_gpu(number, "name,memory.total")?;
    let (name, mebibytes) = line.rsplit_once(", ")?;
    Some((name.to_owned(), mebibytes.trim().parse::<u64>().ok()? << 20))
}

/// What the driver's own tool says of a GPU: neither backend does.
fn ask_gpu(number: &str, fields: &str) -> Option<String> {
    let query = [&format!("--query-gpu={fields}"), "--format=csv,noheader,nounits", "-i", number];
    let output = std::process::Command::new("nvidia-smi").args(query).output().ok()?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names_backends_and_reasons() {
        let flex = Device::parse("flex").unwrap();
        assert_eq!((flex.name(), flex.backend().as_str()), ("flex", "flex"));
        assert!(flex.kernels().starts_with("burn-flex 0.22.1"), "{}", flex.kernels());
        assert!(!cfg!(target_os = "linux") || flex.memory_bytes() > 0);
        assert_ne!(Device::parse("auto").unwrap().name(), "auto");
        let message = |name: &str| Device::parse(name).unwrap_err().to_string();
        for name in ["abacus", "", "flex:0", "tch", "tch:cuda", "tch:cuda:x", "cuda:-1", "cuda"] {
            assert!(message(name).contains("unknown device"), "{name}");
        }
        for name in ["flex+bf16", "flex+f16"] {
            assert!(message(name).contains("32-bit floats alone"), "{}", message(name));
        }
        assert!(message("flex+f64").contains("unknown device"));
        assert!(message("+f16").contains("unknown device"));
        if cfg!(not(feature = "tch")) {
            assert!(message("tch:cpu").contains("--features tch"));
            assert!(message("tch:cuda:0").contains("--features tch"));
        }
        if cfg!(feature = "tch") {
            assert!(message("tch:cpu+f16").contains("emulates float16"), "{}", message("tch:cpu+f16"));
            assert!(message("tch:cpu+bf16+bf16").contains("unknown device"));
        }
        if cfg!(not(feature = "cuda")) {
            assert!(message("cuda:1").contains("--features cuda"));
        }
    }
}
