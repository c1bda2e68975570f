import CLibBPF
import Glibc
import Netlink

/// A map with a counter for each processor, so that none is lost where two count at once.
struct PerProcessorMap<Key: MapLayout>: ~Copyable, Sendable {
  let name: String
  private let descriptor: FileDescriptor
  private let processors: Int
  private let maximum: Int

  /// - Throws: where the kernel's key or value has another size.
  init(_ name: String, owning descriptor: consuming FileDescriptor) throws(SystemError) {
    let info = try MapInfo(descriptor.number, name)
    guard info.keySize == MemoryLayout<Key>.stride, info.valueSize == MemoryLayout<CounterLayout>.stride else {
      throw SystemError(operation: "open map", object: name, errno: EINVAL, detail: "\(info)")
    }
    processors = Int(try check("count processors for", name) { libbpf_num_possible_cpus() })
    self.name = name
    self.descriptor = descriptor
    maximum = info.maximum
  }

  /// The sum over all processors; nil where there is no such element.
  subscript(key: Key) -> CounterLayout? {
    get throws(SystemError) {
      var values = [CounterLayout](repeating: CounterLayout(), count: processors)
      let result = withUnsafePointer(to: key) { bpf_map_lookup_elem(descriptor.number, $0, &values) }
      if result == -ENOENT { return nil }
      try check("look up in", name) { result }
      return values.reduce(into: CounterLayout()) { sum, value in
        sum.packets += value.packets
        sum.bytes += value.bytes
      }
    }
  }

  /// Begins to count; one that counts already goes on.
  func add(_ key: Key) throws(SystemError) {
    let zero = [CounterLayout](repeating: CounterLayout(), count: processors)
    let result = withUnsafePointer(to: key) { key in
      bpf_map_update_elem(descriptor.number, key, zero, UInt64(BPF_NOEXIST))
    }
    if result == -EEXIST { return }
    if let full = MapIsFull.error(name, maximum, result) { throw full }
    try check("write to", name) { result }
  }

  func remove(_ key: Key) throws(SystemError) {
    let result = withUnsafePointer(to: key) { bpf_map_delete_elem(descriptor.number, $0) }
    if result == -ENOENT { return }
    try check("delete from", name) { result }
  }

  func keys() throws(SystemError) -> Set<Key> {
    var found: Set<Key> = []
    var previous: Key?
    while true {
      var next = Key()
      let result =
        if let previous {
          withUnsafePointer(to: previous) { bpf_map_get_next_key(descriptor.number, $0, &next) }
        } else {
          bpf_map_get_next_key(descriptor.number, nil, &next)
        }
      if result == -ENOENT { return found }
      try check("list", name) { result }
      found.insert(next)
      previous = next
    }
  }
}
