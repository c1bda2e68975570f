import CLibBPF
import Glibc
import Netlink

/// A pinned map, opened for reading: whoever programmed it need not run.
public final class PinnedMap: Sendable {
  public enum Kind: Sendable, Hashable, CustomStringConvertible {
    case hash, lruHash, perProcessorHash, array, perProcessorArray, prefixes, ring
    case other(UInt32)

    init(_ type: UInt32) {
      self =
        switch bpf_map_type(rawValue: type) {
        case BPF_MAP_TYPE_HASH: .hash
        case BPF_MAP_TYPE_LRU_HASH: .lruHash
        case BPF_MAP_TYPE_PERCPU_HASH: .perProcessorHash
        case BPF_MAP_TYPE_ARRAY: .array
        case BPF_MAP_TYPE_PERCPU_ARRAY: .perProcessorArray
        case BPF_MAP_TYPE_LPM_TRIE: .prefixes
        case BPF_MAP_TYPE_RINGBUF: .ring
        default: .other(type)
        }
    }

    /// The kernel's names, as bpftool has them.
    public var description: String {
      switch self {
      case .hash: "hash"
      case .lruHash: "lru_hash"
      case .perProcessorHash: "percpu_hash"
      case .array: "array"
      case .perProcessorArray: "percpu_array"
      case .prefixes: "lpm_trie"
      case .ring: "ringbuf"
      case .other(let type): "type_\(type)"
      }
    }

    /// Elements come and go; an array always has all of its own.
    public var canFill: Bool {
      switch self {
      case .hash, .lruHash, .perProcessorHash, .prefixes: true
      default: false
      }
    }
    /// Where it is full the oldest elements go.
    public var forgets: Bool { self == .lruHash }
    var isPerProcessor: Bool { self == .perProcessorHash || self == .perProcessorArray }
    var hasElements: Bool { canFill || self == .array || self == .perProcessorArray }
  }

  public let name: String
  /// The pin's name in its folder.
  public let pin: String
  public let kind: Kind
  /// Bytes.
  public let keySize: Int
  /// Bytes; of a map with a value for each processor: of one of them.
  public let valueSize: Int
  /// Most elements; of a ring its bytes.
  public let maximum: Int
  let descriptor: FileDescriptor

  init?(_ pin: String, in folder: PinFolder) throws(SystemError) {
    guard let name = Self.name(inPin: pin) else { return nil }
    // It may have gone since the folder was listed.
    guard let number = try folder.open(pin, forReading: true) else { return nil }
    descriptor = FileDescriptor(owning: number)
    let info = try MapInfo(number, name)
    (self.name, self.pin, kind) = (name, pin, Kind(info.type))
    (keySize, valueSize, maximum) = (info.keySize, info.valueSize, info.maximum)
  }

  /// `map-NAME-TYPE-KEY-VALUE-MAXIMUM-FLAGS`; nil where it is no map's pin.
  private static func name(inPin pin: String) -> String? {
    guard pin.hasPrefix(MapPins.prefix) else { return nil }
    let parts = pin.dropFirst(MapPins.prefix.count).split(separator: "-", omittingEmptySubsequences: false)
    guard parts.count == 6, parts.dropFirst().allSatisfy({ UInt32($0) != nil }) else { return nil }
    return String(parts[0])
  }

  /// Every map that is pinned in the folder, by name. During an update there may be two of one name, of two layouts.
  public static func all(in folder: PinFolder) throws(SystemError) -> [PinnedMap] {
    var maps: [PinnedMap] = []
    for pin in folder.names { if let map = try PinnedMap(pin, in: folder) { maps.append(map) } }
    return maps
  }

  /// Bytes of memory that the kernel has given it (since Linux 6.4 all that it holds; before, what its bound needs); nil
  /// where the kernel does not tell.
  public var memory: Int? {
    guard let file = fopen("/proc/self/fdinfo/\(descriptor.number)", "r") else { return nil }
    defer { fclose(file) }
    var buffer = [CChar](repeating: 0, count: 256)
    while fgets(&buffer, CInt(buffer.count), file) != nil {
      let line = String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
      guard line.hasPrefix("memlock:") else { continue }
      return Int(line.dropFirst("memlock:".count).filter { $0.isNumber })
    }
    return nil
  }
}

extension PinFolder {
  /// A folder in which something is pinned already; nothing is made.
  ///
  /// - Throws: where it is not there, is in no BPF file system, or may not be read.
  public init(reading path: String) throws(SystemError) {
    self.init(unchecked: path)
    func missing(_ reason: String) -> SystemError {
      SystemError(operation: "find pinned maps in", object: path, errno: ENOENT, detail: reason)
    }
    let place = Glibc.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard place >= 0 else {
      if errno != ENOENT { throw SystemError(operation: "open folder", object: path, errno: errno) }
      throw missing("neither the ebpf engine nor --socket-lb runs here, or it pins elsewhere")
    }
    close(place)
    guard BPFFileSystem.isMounted(path) else { throw missing("it is in no BPF file system") }
    guard names.contains(where: { $0.hasPrefix(MapPins.prefix) }) else { throw missing("nothing is pinned there") }
  }

  /// Whether packet programs have maps there: the ebpf engine's.
  public var hasPacketMaps: Bool { names.contains { $0.hasPrefix("\(MapPins.prefix)flows-") } }
}
