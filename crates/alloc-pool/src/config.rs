//! How a pool behaves.

use std::ffi::OsString;
use std::sync::Arc;

use alloc_core::EventHook;
use thiserror::Error;

/// The policies of a pool. The default suits most programs.
///
/// Versions that are compatible by their number may bring new fields, so write it with `..PoolConfig::default()` (or
/// `..PoolConfig::from_env()?`) at the end, and read fields by name.
///
/// ```
/// use alloc_pool::PoolConfig;
/// let config = PoolConfig { limit: Some(8 << 30), growth_slack: 0.05, ..PoolConfig::default() };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "written with `..PoolConfig::default()`, as its doc says")]
pub struct PoolConfig {
    /// The most physical memory to hold, in bytes. Default: no limit but the device's. It is held in the backend's pages,
    /// mostly of 2 MiB, so a limit below that leaves none. Environment: `ALLOC_POOL_LIMIT`.
    pub limit: Option<u64>,
    /// Physical memory beyond this many bytes is given back as soon as it is free. Default: kept until
    /// [`trim`](alloc_core::DeviceAllocator::trim) or until memory runs out. Environment: `ALLOC_POOL_RELEASE_THRESHOLD`.
    pub release_threshold: Option<u64>,
    /// How far physical memory may grow past the peak of bytes in use before free pages are moved instead, as a
    /// fraction of that peak. Default: 0.0195. Environment: `ALLOC_POOL_GROWTH_SLACK`.
    pub growth_slack: f64,
    /// How much further, as a fraction of the same peak, for a pool that keeps moving pages: more than one byte in 500
    /// that it allocates. Default: 0.02. Environment: `ALLOC_POOL_GROWTH_SLACK_MOVING`.
    pub growth_slack_moving: f64,
    /// How much further still for one that thrashes: long after its peak was reached it moves more than one piece in 320
    /// blocks, or one byte in 64 that it allocates; or one piece in 2,000 blocks if it always has two thirds of the peak in
    /// use. 2.0 for each time that it moves all of its pieces. Or 0.2 for each such time while, for some 25,000 blocks by then,
    /// it has moved more than one piece in 100; the larger of the two counts, up to this. Default: 1.
    /// Environment: `ALLOC_POOL_GROWTH_SLACK_THRASHING`.
    pub growth_slack_thrashing: f64,
    /// How much further still where streams keep waiting for each other while the host is far ahead of the device: by 0.01
    /// for each such wait after the first 64, less one for sixteen others; and by 0.0105 once they have waited eight times at all. Up to
    /// this in all. Default: 0.5. Environment: `ALLOC_POOL_GROWTH_SLACK_WAITING`.
    pub growth_slack_waiting: f64,
    /// Physical memory is created in pieces of the peak of bytes in use divided by this, so that pieces grow with the
    /// pool. Default: 192. Environment: `ALLOC_POOL_PIECES_PER_PEAK`.
    pub pieces_per_peak: u32,
    /// The largest piece in bytes; those of a block of more than 16 pieces may be three times as large. Default: 16 MiB.
    /// Environment: `ALLOC_POOL_MAX_PIECE`.
    pub max_piece: u64,
    /// Address space reserved for each arena, in bytes, if the backend maps pages; rounded up to a power of two and
    /// halved as long as the system refuses. Default: eight times the device's memory. At most 2 TiB.
    /// Environment: `ALLOC_POOL_ADDRESS_SPACE`.
    pub address_space: Option<u64>,
    /// The most bytes of released small blocks that one thread keeps for one stream; 0 turns thread caches off.
    /// Default: 8 MiB. Environment: `ALLOC_POOL_THREAD_CACHE`.
    pub thread_cache: u64,
    /// The most arenas that threads which get in each other's way spread over. Default: the number of processors, up to 256.
    /// Environment: `ALLOC_POOL_ARENAS`.
    pub arenas: u32,
    /// Told of rare things.
    pub hook: Option<Arc<dyn EventHook>>,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            limit: None,
            release_threshold: None,
            growth_slack: 0.0195,
            growth_slack_moving: 0.02,
            growth_slack_thrashing: 1.0,
            growth_slack_waiting: 0.5,
            pieces_per_peak: 192,
            max_piece: 16 << 20,
            address_space: None,
            thread_cache: 8 << 20,
            arenas: arenas_for(std::thread::available_parallelism().map_or(4, |n| n.get())),
            hook: None,
        }
    }
}

/// The most that [`PoolConfig::arenas`] may be.
const MOST_ARENAS: u32 = 256;

/// How many arenas there may be by default. A machine may well have more processors than a pool can have arenas.
fn arenas_for(processors: usize) -> u32 {
    u32::try_from(processors).map_or(MOST_ARENAS, |processors| processors.clamp(1, MOST_ARENAS))
}

/// A setting that makes no sense.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number outside its range.
    #[error("{setting} is {value}, which is not within {allowed}")]
    OutOfRange {
        /// The field's name.
        setting: &'static str,
        /// Its value.
        value: f64,
        /// What is allowed, in words.
        allowed: &'static str,
    },
    /// An environment variable that is no number of the kind wanted.
    #[error("environment variable {variable} is {value:?}, which is no {expected}")]
    Environment {
        /// The variable.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold, in words.
        expected: &'static str,
    },
}

/// What a number of bytes looks like, in errors.
const BYTES: &str = "number of bytes, such as 4096, 64M or 8G";

impl PoolConfig {
    /// The default with what the environment says on top: `ALLOC_POOL_LIMIT` and the other variables named at the
    /// fields. Bytes may end in `K`, `M`, `G` or `T` (powers of 1024).
    ///
    /// # Errors
    /// [`ConfigError`] for the first variable that can't be read.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_variables(|name| std::env::var_os(name).map(text_of))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let bytes = |name: &'static str| match variable(name) {
            None => Ok(None),
            Some(value) => match parse_bytes(&value) {
                Some(bytes) => Ok(Some(bytes)),
                None => Err(ConfigError::Environment { variable: name, value, expected: BYTES }),
            },
        };
        let number = |name: &'static str| match bytes(name)? {
            None => Ok(None),
            Some(n) => u32::try_from(n).map(Some).map_err(|_| ConfigError::Environment {
                variable: name,
                value: n.to_string(),
                expected: "number below 2^32",
            }),
        };
        let mut config = Self::default();
        config.limit = bytes("ALLOC_POOL_LIMIT")?.or(config.limit);
        config.release_threshold = bytes("ALLOC_POOL_RELEASE_THRESHOLD")?.or(config.release_threshold);
        config.address_space = bytes("ALLOC_POOL_ADDRESS_SPACE")?.or(config.address_space);
        config.max_piece = bytes("ALLOC_POOL_MAX_PIECE")?.unwrap_or(config.max_piece);
        config.thread_cache = bytes("ALLOC_POOL_THREAD_CACHE")?.unwrap_or(config.thread_cache);
        config.pieces_per_peak = number("ALLOC_POOL_PIECES_PER_PEAK")?.unwrap_or(config.pieces_per_peak);
        config.arenas = number("ALLOC_POOL_ARENAS")?.unwrap_or(config.arenas);
        let fraction = |name: &'static str| match variable(name) {
            None => Ok(None),
            Some(value) => match value.trim().parse() {
                Ok(fraction) => Ok(Some(fraction)),
                Err(_) => Err(ConfigError::Environment { variable: name, value, expected: "fraction, such as 0.02" }),
            },
        };
        config.growth_slack = fraction("ALLOC_POOL_GROWTH_SLACK")?.unwrap_or(config.growth_slack);
        config.growth_slack_moving = fraction("ALLOC_POOL_GROWTH_SLACK_MOVING")?.unwrap_or(config.growth_slack_moving);
        config.growth_slack_thrashing =
            fraction("ALLOC_POOL_GROWTH_SLACK_THRASHING")?.unwrap_or(config.growth_slack_thrashing);
        config.growth_slack_waiting =
            fraction("ALLOC_POOL_GROWTH_SLACK_WAITING")?.unwrap_or(config.growth_slack_waiting);
        config.validate()?;
        Ok(config)
    }

    /// Whether all settings are within their ranges.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`] for the first that is not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |setting, value: f64, good, allowed| {
            if good { Ok(()) } else { Err(ConfigError::OutOfRange { setting, value, allowed }) }
        };
        for (setting, slack) in [
            ("growth_slack", self.growth_slack),
            ("growth_slack_moving", self.growth_slack_moving),
            ("growth_slack_thrashing", self.growth_slack_thrashing),
            ("growth_slack_waiting", self.growth_slack_waiting),
        ] {
            check(setting, slack, (0.0..=16.0).contains(&slack), "0 to 16")?;
        }
        let pieces = self.pieces_per_peak;
        check("pieces_per_peak", f64::from(pieces), pieces >= 1, "1 or more")?;
        let arenas = self.arenas;
        check("arenas", f64::from(arenas), (1..=MOST_ARENAS).contains(&arenas), "1 to 256")?;
        let piece = self.max_piece;
        check("max_piece", piece as f64, (1..=1 << 36).contains(&piece), "1 byte to 64 GiB")
    }
}

/// What a variable holds. In place of what is no text it has what no number has, so that it is refused and not passed over.
fn text_of(value: OsString) -> String {
    value.into_string().unwrap_or_else(|value| value.to_string_lossy().into_owned())
}

/// A number of bytes as the environment has it: digits, and perhaps one of `K`, `M`, `G` and `T` (powers of 1024).
///
/// ```
/// assert_eq!(alloc_pool::parse_bytes("64M"), Some(64 << 20));
/// ```
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = match text.chars().last()?.to_ascii_uppercase() {
        'K' => (&text[..text.len() - 1], 10),
        'M' => (&text[..text.len() - 1], 20),
        'G' => (&text[..text.len() - 1], 30),
        'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_with_suffixes() {
        let config = PoolConfig::from_variables(|name| match name {
            "ALLOC_POOL_LIMIT" => Some("3G".into()),
            "ALLOC_POOL_GROWTH_SLACK" => Some("0.5".into()),
            "ALLOC_POOL_THREAD_CACHE" => Some(" 64 k ".into()),
            _ => None,
        })
        .unwrap();
        assert_eq!((config.limit, config.growth_slack, config.thread_cache), (Some(3 << 30), 0.5, 64 << 10));
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_no_text_is_named_as_well() {
        let value = || std::os::unix::ffi::OsStringExt::from_vec(vec![b'3', 0xff, b'G']);
        for name in ["ALLOC_POOL_LIMIT", "ALLOC_POOL_GROWTH_SLACK", "ALLOC_POOL_ARENAS"] {
            let error = PoolConfig::from_variables(|other| (other == name).then(|| text_of(value()))).unwrap_err();
            assert!(matches!(error, ConfigError::Environment { variable, .. } if variable == name), "{error}");
        }
    }

    #[test]
    fn the_default_is_valid_on_a_machine_of_any_size() {
        for (processors, arenas) in [(1, 1), (96, 96), (256, 256), (257, 256), (384, 256), (usize::MAX, 256)] {
            let config = PoolConfig { arenas: arenas_for(processors), ..PoolConfig::default() };
            assert_eq!((config.arenas, config.validate()), (arenas, Ok(())), "{processors} processors");
        }
    }

    #[test]
    fn each_variable_sets_its_own_setting() {
        type Setting = fn(&PoolConfig) -> f64;
        let settings: [(&str, Setting); 11] = [
            ("ALLOC_POOL_LIMIT", |config| config.limit.unwrap() as f64),
            ("ALLOC_POOL_RELEASE_THRESHOLD", |config| config.release_threshold.unwrap() as f64),
            ("ALLOC_POOL_GROWTH_SLACK", |config| config.growth_slack),
            ("ALLOC_POOL_GROWTH_SLACK_MOVING", |config| config.growth_slack_moving),
            ("ALLOC_POOL_GROWTH_SLACK_THRASHING", |config| config.growth_slack_thrashing),
            ("ALLOC_POOL_GROWTH_SLACK_WAITING", |config| config.growth_slack_waiting),
            ("ALLOC_POOL_PIECES_PER_PEAK", |config| f64::from(config.pieces_per_peak)),
            ("ALLOC_POOL_MAX_PIECE", |config| config.max_piece as f64),
            ("ALLOC_POOL_ADDRESS_SPACE", |config| config.address_space.unwrap() as f64),
            ("ALLOC_POOL_THREAD_CACHE", |config| config.thread_cache as f64),
            ("ALLOC_POOL_ARENAS", |config| f64::from(config.arenas)),
        ];
        // All at once, each with a number of its own.
        let number_of = |name: &str| Some(1 + settings.iter().position(|(variable, _)| *variable == name)?);
        let config = PoolConfig::from_variables(|name| number_of(name).map(|number| number.to_string())).unwrap();
        for (variable, setting) in settings {
            assert_eq!(Some(setting(&config) as usize), number_of(variable), "{variable}");
        }
        for (variable, _) in settings {
            let wrong = |name: &str| (name == variable).then(|| "-1".to_owned());
            assert!(PoolConfig::from_variables(wrong).is_err(), "{variable} of -1");
        }
    }

    #[test]
    fn nonsense_is_named() {
        let error = PoolConfig::from_variables(|n| (n == "ALLOC_POOL_LIMIT").then(|| "lots".into())).unwrap_err();
        assert!(matches!(error, ConfigError::Environment { variable: "ALLOC_POOL_LIMIT", .. }));
        let error = PoolConfig::from_variables(|n| (n == "ALLOC_POOL_LIMIT").then(|| "99999999T".into())).unwrap_err();
        assert!(matches!(error, ConfigError::Environment { .. }));
        let error = PoolConfig { growth_slack: f64::NAN, ..PoolConfig::default() }.validate().unwrap_err();
        assert!(matches!(error, ConfigError::OutOfRange { setting: "growth_slack", .. }));
    }
}
