//! CNI results: reading addresses and converting between versions.
//!
//! A plugin may answer in an older version than it was asked in; the next
//! plugin must see `prevResult` in the version of the list.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::version::Version;

/// Brings a result to `version`. Results without a version are taken as 0.2.0
/// when they hold `ip4` or `ip6`, else as what was asked for.
pub(crate) fn convert(mut result: Map<String, Value>, version: Version) -> Map<String, Value> {
    if version >= Version::LISTS {
        upgrade_addresses(&mut result);
        if let Some(Value::Array(ips)) = result.get_mut("ips") {
            for ip in ips.iter_mut().filter_map(Value::as_object_mut) {
                if version >= Version::V1 {
                    ip.remove("version");
                } else if let Some(v6) = ip
                    .get("address")
                    .and_then(Value::as_str)
                    .map(|a| a.contains(':'))
                {
                    ip.insert("version".into(), if v6 { "6" } else { "4" }.into());
                }
            }
        }
    } else {
        downgrade_addresses(&mut result);
    }
    result.insert("cniVersion".into(), version.to_string().into());
    result
}

/// `ip4`/`ip6` of 0.1 and 0.2 become `ips` and `routes`.
fn upgrade_addresses(result: &mut Map<String, Value>) {
    for key in ["ip4", "ip6"] {
        let Some(Value::Object(mut old)) = result.remove(key) else {
            continue;
        };
        let mut ip = Map::new();
        for (from, to) in [("ip", "address"), ("gateway", "gateway")] {
            if let Some(value) = old.remove(from) {
                ip.insert(to.into(), value);
            }
        }
        append(result, "ips", vec![ip.into()]);
        if let Some(Value::Array(routes)) = old.remove("routes") {
            append(result, "routes", routes);
        }
    }
}

/// The first address of each family; 0.2 can hold no more.
fn downgrade_addresses(result: &mut Map<String, Value>) {
    let Some(Value::Array(ips)) = result.remove("ips") else {
        return;
    };
    let Some(Value::Array(routes)) = Some(result.remove("routes").unwrap_or_else(|| json!([])))
    else {
        return;
    };
    result.remove("interfaces");
    let v6 = |value: &Value, key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .is_some_and(|a| a.contains(':'))
    };
    for (key, want_v6) in [("ip4", false), ("ip6", true)] {
        if let Some(ip) = ips.iter().find(|ip| v6(ip, "address") == want_v6) {
            let mut old = json!({"ip": ip.get("address")});
            if let Some(gateway) = ip.get("gateway") {
                old["gateway"] = gateway.clone();
            }
            let routes: Vec<&Value> = routes.iter().filter(|r| v6(r, "dst") == want_v6).collect();
            if !routes.is_empty() {
                old["routes"] = json!(routes);
            }
            result.insert(key.into(), old);
        }
    }
}

fn append(result: &mut Map<String, Value>, key: &str, mut items: Vec<Value>) {
    if let Value::Array(list) = result.entry(key).or_insert_with(|| json!([])) {
        list.append(&mut items);
    }
}

/// The pod's addresses in a result of any version: those of `interface` inside
/// the pod, or without an interface; IPv4 first, else in the plugin's order.
pub(crate) fn pod_ips(result: &Map<String, Value>, interface: &str) -> Result<Vec<IpAddr>, String> {
    let mut result = result.clone();
    upgrade_addresses(&mut result);
    let mut found = Vec::new();
    for ip in result
        .get("ips")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        if !belongs(&result, ip, interface) {
            continue;
        }
        let text = ip
            .get("address")
            .and_then(Value::as_str)
            .ok_or("an entry of ips has no address")?;
        let address = text.split('/').next().unwrap_or(text);
        let address: IpAddr = address
            .parse()
            .map_err(|_| format!("{text:?} is not an address"))?;
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if found.is_empty() {
        return Err(format!("it holds no address for {interface}"));
    }
    found.sort_by_key(IpAddr::is_ipv6);
    Ok(found)
}

fn belongs(result: &Map<String, Value>, ip: &Value, interface: &str) -> bool {
    let Some(index) = ip.get("interface").and_then(Value::as_u64) else {
        return true;
    };
    let listed = usize::try_from(index)
        .ok()
        .and_then(|i| result.get("interfaces")?.get(i));
    let Some(listed) = listed else { return true };
    let text = |key| listed.get(key).and_then(Value::as_str).unwrap_or_default();
    !text("sandbox").is_empty() && text("name") == interface
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn conversions() {
        let v02 = json!({"ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]}, "ip6": {"ip": "fd00::2/64"}, "dns": {}});
        let v04 = json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"version": "6", "address": "fd00::2/64"}], "routes": [{"dst": "0.0.0.0/0"}], "dns": {}});
        let v10 = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64"}], "routes": [{"dst": "0.0.0.0/0"}], "dns": {}});
        for (from, version, want) in [
            (&v02, "0.4.0", &v04),
            (&v02, "1.0.0", &v10),
            (&v04, "1.0.0", &v10),
            (&v10, "0.4.0", &v04),
            (&v10, "1.0.0", &v10),
        ] {
            assert_eq!(
                &Value::from(convert(
                    object(from.clone()),
                    Version::supported(version).unwrap()
                )),
                want,
                "{from} to {version}"
            );
        }
        let mut back = convert(object(v10), Version::supported("0.2.0").unwrap());
        back.remove("cniVersion");
        assert_eq!(Value::from(back), v02);
    }

    #[test]
    fn addresses() {
        let pod = |ips: Value| json!({"interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/run/netns/x"}, {"name": "eth0"}], "ips": ips});
        for (result, want) in [
            (json!({"ip4": {"ip": "10.0.0.2/24"}}), vec!["10.0.0.2"]),
            (
                pod(json!([{"address": "10.0.0.2/24", "interface": 1}])),
                vec!["10.0.0.2"],
            ),
            (
                pod(
                    json!([{"address": "10.0.0.1/24", "interface": 0}, {"address": "10.0.0.2/24", "interface": 1}]),
                ),
                vec!["10.0.0.2"],
            ),
            (
                pod(
                    json!([{"address": "10.9.9.9/24", "interface": 2}, {"address": "10.0.0.2/24"}]),
                ),
                vec!["10.0.0.2"],
            ),
            (
                json!({"ips": [{"address": "fd00::2/64"}, {"address": "10.0.0.2/24"}]}),
                vec!["10.0.0.2", "fd00::2"],
            ),
        ] {
            let ips = pod_ips(&object(result.clone()), "eth0").unwrap();
            assert_eq!(
                ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
                want,
                "{result}"
            );
        }
        for (result, why) in [
            (json!({}), "no address for eth0"),
            (json!({"ips": [{}]}), "has no address"),
            (json!({"ips": [{"address": "10.0.0/24"}]}), "not an address"),
            (
                pod(json!([{"address": "10.0.0.1/24", "interface": 0}])),
                "no address for eth0",
            ),
        ] {
            let error = pod_ips(&object(result.clone()), "eth0").unwrap_err();
            assert!(error.contains(why), "{result}: {error}");
        }
    }
}
