//! Modules and components made for another host than ours: the sentence that names the
//! host and says what to do, because a list of imports alone tells a user little.

/// The beginning of an import (`module::name`, or an interface) or export, and the sentence.
const HOSTS: &[(&str, &str)] = &[
    ("env::proxy_", PROXY_WASM),
    ("proxy_abi_version_", PROXY_WASM),
    (
        "wasix_",
        "it is made for WASIX, which only Wasmer has; build it for wasm32-wasip1 or wasm32-wasip2",
    ),
    (
        "wasi_unstable::",
        "it is made for WASI preview 0; build it with a current toolchain for wasm32-wasip1",
    ),
    (
        "wasi_snapshot_preview1::sock_",
        "it uses the sockets that WasmEdge added to preview 1; build it as a component (wasm32-wasip2), which has sockets here",
    ),
    (
        "wasmedge_",
        "it uses an extension of WasmEdge, which is not provided here",
    ),
    (
        "wasi_ephemeral_nn::",
        "it uses wasi-nn, which is not provided here",
    ),
    (
        "lunatic::",
        "it is made for lunatic; build it for wasm32-wasip1 or wasm32-wasip2",
    ),
    (
        "wapc::",
        "it is a waPC guest, such as a Kubewarden policy; it runs inside its policy server, not in a pod",
    ),
    (
        "wasi_experimental_http::",
        "it uses the HTTP client of krustlet; build it as a component (wasm32-wasip2), which has wasi:http here",
    ),
    ("gojs::", BROWSER_GO),
    ("go::", BROWSER_GO),
    ("__wbindgen_placeholder__::", BROWSER),
    ("wbg::", BROWSER),
    ("fermyon:spin/", SPIN),
    ("spin:", SPIN),
    (
        "wasmcloud:",
        "it uses interfaces of wasmCloud; build it with standard ones only (wasi:http, wasi:keyvalue, wasi:config, wasi:blobstore)",
    ),
    (
        "wasi:messaging/",
        "it uses wasi:messaging, which is not provided here; let it serve wasi:http or run as a command instead",
    ),
    ("wasi:nn/", "it uses wasi-nn, which is not provided here"),
];

/// What the version of a candidate of WASI 0.3 holds.
const CANDIDATE: &str = "@0.3.0-rc";

const OF_CANDIDATE: &str =
    "it is made for a candidate of WASI 0.3; build it for the release, 0.3.0";

const PROXY_WASM: &str =
    "it is a proxy-wasm filter, which runs inside Envoy; use it in a WasmPlugin instead of a pod";
const BROWSER_GO: &str = "Go made it for browsers (GOOS=js); build it with GOOS=wasip1";
const BROWSER: &str =
    "wasm-bindgen made it for browsers; build it for wasm32-wasip1 or wasm32-wasip2";
const SPIN: &str = "it is a Spin component, which is not supported yet; \
     build it with standard interfaces only (wasi:http, wasi:cli, wasi:keyvalue, wasi:config)";

/// The sentence for the first name that tells, with what joins it to the text before it.
pub(crate) fn hint<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names
        .into_iter()
        .find_map(sentence)
        .map(|sentence| format!("; {sentence}"))
        .unwrap_or_default()
}

fn sentence(name: &str) -> Option<&'static str> {
    if name.contains(CANDIDATE) {
        return Some(OF_CANDIDATE);
    }
    let found = HOSTS.iter().find(|(start, _)| name.starts_with(start));
    found.map(|(_, sentence)| *sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_told_by_the_names() {
        for (names, part) in [
            (&["env::memory", "env::proxy_log"][..], "Envoy"),
            (&["wasix_32v1::thread_spawn"], "Wasmer"),
            (&["wasi_unstable::fd_write"], "preview 0"),
            (&["wasi_snapshot_preview1::sock_open"], "WasmEdge"),
            (&["gojs::runtime.wasmExit"], "GOOS=wasip1"),
            (&["fermyon:spin/key-value"], "Spin"),
            (&["wasi:messaging/consumer@0.2.0-draft"], "messaging"),
            (&["wasi:cli/run@0.3.0-rc-2026-03-15"], "0.3.0"),
        ] {
            assert!(hint(names.iter().copied()).contains(part), "{names:?}");
        }
        for names in [&["env::launch_rocket", "_start"][..], &[]] {
            assert_eq!(hint(names.iter().copied()), "");
        }
    }
}
