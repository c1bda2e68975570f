import Glibc

/// Counters, gauges and histograms in Prometheus' text format. kube-proxy's names where they mean the same.
struct AgentMetrics: Sendable {
  /// Seconds; kube-proxy's own buckets reach from 1 ms to 16 s, ours start lower.
  struct Histogram: Sendable {
    static let bounds: [Double] = [
      0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
    ]
    private(set) var counts = [Int](repeating: 0, count: Histogram.bounds.count)
    private(set) var sum = 0.0
    private(set) var count = 0

    mutating func observe(_ seconds: Double) {
      for (index, bound) in Self.bounds.enumerated() where seconds <= bound { counts[index] += 1 }
      sum += seconds
      count += 1
    }
  }

  var syncDuration = Histogram()
  var programmingDuration = Histogram()
  var lastSync = 0.0
  var lastQueued = 0.0
  var endpointChanges = 0
  var serviceChanges = 0
  var netlinkMessages = 0
  var dumps = 0
  var transactionFailures = 0
  var drift = 0
  var repairs = 0
  var staleFlowsRemoved = 0
  var withoutLocalEndpoint: [String: Int] = [:]
  var gauges: [(name: String, help: String, value: Double)] = []
  /// Counters, and gauges, with labels.
  var families: [Family] = []

  struct Sample: Sendable {
    var labels: [(String, String)]
    var value: UInt64
  }
  struct Family: Sendable {
    var name: String
    var help: String
    var type = "counter"
    var samples: [Sample]
  }

  static var residentBytes: Int {
    guard let file = fopen("/proc/self/statm", "r") else { return 0 }
    defer { fclose(file) }
    var buffer = [CChar](repeating: 0, count: 128)
    guard fgets(&buffer, 128, file) != nil else { return 0 }
    let text = String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    let fields = text.split(separator: " ")
    return fields.count > 1 ? (Int(fields[1]) ?? 0) * Int(sysconf(Int32(_SC_PAGESIZE))) : 0
  }

  func text() -> String {
    var out = ""
    func family(_ name: String, _ type: String, _ help: String) {
      out += "# HELP \(name) \(help)\n# TYPE \(name) \(type)\n"
    }
    func histogram(_ name: String, _ help: String, _ histogram: Histogram) {
      family(name, "histogram", help)
      for (index, bound) in Histogram.bounds.enumerated() {
        out += "\(name)_bucket{le=\"\(bound)\"} \(histogram.counts[index])\n"
      }
      out += "\(name)_bucket{le=\"+Inf\"} \(histogram.count)\n"
      out += "\(name)_sum \(histogram.sum)\n\(name)_count \(histogram.count)\n"
    }
    func number(_ name: String, _ type: String, _ help: String, _ value: Double) {
      family(name, type, help)
      out += "\(name) \(value)\n"
    }
    histogram(
      "kubeproxy_sync_proxy_rules_duration_seconds", "From reading a change to the kernel's acknowledgement.",
      syncDuration)
    histogram(
      "kubeproxy_network_programming_duration_seconds",
      "From the change in the cluster (last-change-trigger-time) to the kernel's acknowledgement.",
      programmingDuration)
    number(
      "kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge", "When the kernel last acknowledged a change.",
      lastSync)
    number(
      "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "gauge", "When a change last arrived.", lastQueued)
    number(
      "kubeproxy_sync_proxy_rules_endpoint_changes_total", "counter", "EndpointSlices that changed.",
      Double(endpointChanges))
    number(
      "kubeproxy_sync_proxy_rules_service_changes_total", "counter", "Services that changed.", Double(serviceChanges))
    family(
      "kubeproxy_sync_proxy_rules_no_local_endpoints_total", "gauge",
      "Services whose traffic policy is Local and which have endpoints, but none here.")
    for policy in ["external", "internal"] {
      out +=
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"\(policy)\"} \(withoutLocalEndpoint[policy] ?? 0)\n"
    }
    number("sluice_netlink_messages_total", "counter", "Messages sent to nf_tables.", Double(netlinkMessages))
    number("sluice_netlink_dumps_total", "counter", "Listings asked of nf_tables.", Double(dumps))
    number(
      "sluice_transaction_failures_total", "counter", "Transactions the kernel refused.", Double(transactionFailures))
    number("sluice_drift_objects_total", "counter", "Kernel objects found other than they should be.", Double(drift))
    number("sluice_repairs_total", "counter", "Times the kernel was repaired.", Double(repairs))
    number(
      "sluice_stale_flows_removed_total", "counter", "UDP conntrack entries removed because their backend is gone.",
      Double(staleFlowsRemoved))
    for counter in families {
      family(counter.name, counter.type, counter.help)
      for sample in counter.samples {
        let labels = sample.labels.map { "\($0)=\"\($1)\"" }.joined(separator: ",")
        out += "\(counter.name)\(labels.isEmpty ? "" : "{\(labels)}") \(sample.value)\n"
      }
    }
    for gauge in gauges { number(gauge.name, "gauge", gauge.help, gauge.value) }
    number("process_resident_memory_bytes", "gauge", "Resident memory.", Double(Self.residentBytes))
    return out
  }
}
