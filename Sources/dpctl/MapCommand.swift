import ArgumentParser
import BPFLoader
import Glibc
import LocalAPI
import Netlink

/// The kernel's own tables of the eBPF engine and of services at the socket. Needs no agent.
struct MapCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "map", abstract: "Pinned BPF maps, read from the kernel; the agent may be dead.",
    subcommands: [MapList.self, MapGet.self], defaultSubcommand: MapList.self)
}

struct MapList: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "Every map with its size.",
    discussion: "Entries of flows and other caches (lru_hash) stay until their place is needed: full is usual there.")
  @OptionGroup var options: GlobalOptions
  @OptionGroup var pins: PinOptions

  func run() throws {
    let folder = try pins.folder()
    let items = try PinOptions.reading { () throws(SystemError) in
      var items: [JSONValue] = []
      for map in try PinnedMap.all(in: folder) { items.append(try Self.json(map)) }
      return items
    }
    let answer: JSONValue = ["apiVersion": "sluice.dev/v1", "items": .array(items)]
    Output.list(answer, options, name: { $0.text("name") }) { items, wide in
      Table(
        headers: ["NAME", "KIND", "KEY", "VALUE", "ENTRIES", "MAX", "FILL", "MEMORY"] + (wide ? ["PIN"] : []),
        rows: items.map { item in
          [
            item.text("name"), item.text("kind"), "\(item.number("keyBytes")) B", "\(item.number("valueBytes")) B",
            item.present("entries") == nil ? "-" : item.text("entries"), item.text("maxEntries"),
            item.present("fillPercent") == nil ? "-" : "\(item.text("fillPercent")) %",
            item.present("memoryBytes") == nil ? "-" : Self.size(item.number("memoryBytes")),
          ] + (wide ? [item.text("pin")] : [])
        })
    }
  }

  private static func json(_ map: PinnedMap) throws(SystemError) -> JSONValue {
    let entries = map.kind == .ring ? nil : try map.count()
    let percent = map.kind.canFill && map.maximum > 0 ? entries.map { $0 * 100 / map.maximum } : nil
    func number(_ value: Int?) -> JSONValue { value.map { .int(Int64($0)) } ?? .null }
    return [
      "name": .string(map.name), "kind": .string("\(map.kind)"), "keyBytes": number(map.keySize),
      "valueBytes": number(map.valueSize), "entries": number(entries), "maxEntries": number(map.maximum),
      "fillPercent": number(percent), "memoryBytes": number(map.memory), "pin": .string(map.pin),
    ]
  }

  private static func size(_ bytes: Int64) -> String {
    switch bytes {
    case ..<1024: "\(bytes) B"
    case ..<(1 << 20): "\(bytes >> 10) KiB"
    default: "\(bytes >> 20) MiB"
    }
  }
}

struct MapGet: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "get", abstract: "The elements of a map, in words.",
    discussion: """
      A filter is a word that a field of the key is equal to, an address or a prefix that it lies in, or NAME=WORD of \
      any field, as the output has them. All filters have to hold. Elements come as the kernel has them: in no order.
      """)
  @OptionGroup var options: GlobalOptions
  @OptionGroup var pins: PinOptions
  @Option(help: "The agent's state, for names of Services.") var stateDir = LocalAPIDefaults.stateDirectory
  @Flag(help: "Bytes, not words.") var hex = false
  @Argument(help: "As `dpctl map list` has it.") var name: String
  @Argument(help: "Which elements: 10.0.0.1, 10.0.0.0/8, tcp, port=80, state=open; all have to hold.")
  var filters: [MapFilter] = []

  func run() throws {
    let folder = try pins.folder()
    let all = try PinOptions.reading { () throws(SystemError) in try PinnedMap.all(in: folder) }
    let named = all.filter { $0.name == name }
    // Of two layouts the one that this build can read.
    guard let map = named.first(where: { MapWords.of($0) != nil }) ?? named.first else {
      let names = Set(all.map(\.name)).sorted().joined(separator: ", ")
      Dpctl.complain("dpctl: there is no map '\(name)' in \(folder.path); there are: \(names)")
      throw ExitCode(1)
    }
    let words = hex ? nil : MapWords.of(map)
    if words == nil, !hex {
      let why =
        MapWords.silent.contains(name)
        ? "has nothing to read (events: dpctl monitor)"
        : "has a layout that this dpctl does not know; --hex shows its bytes"
      Dpctl.complain("dpctl: map \(name) \(why)")
      throw ExitCode(1)
    }
    if hex, !filters.isEmpty { throw ValidationError("filters are about words: leave out --hex") }
    let services = ServiceNames(stateDirectory: stateDir)
    try PinOptions.reading { () throws(SystemError) in
      try map.forEach { keyBytes, valueBytes in
        guard let words else {
          write(key: [Field("key", .text(Self.hex(keyBytes)))], value: [Field("value", .text(Self.hex(valueBytes)))])
          return true
        }
        let key = Self.naming(words.key(keyBytes), services)
        let value = Self.naming(words.value(valueBytes), services)
        if filters.allSatisfy({ $0.passes(key: key, value: value) }) { write(key: key, value: value) }
        return true
      }
    }
  }

  /// One line for each element, whatever the format: nothing is kept.
  private func write(key: [Field], value: [Field]) {
    switch options.output {
    case .json, .jsonl:
      let line: JSONValue = ["map": .string(name), "key": key.json, "value": value.json]
      print(line.serialized())
    case .yaml:
      let element: JSONValue = ["key": key.json, "value": value.json]
      print(Output.yaml(.array([element]), indent: 0))
    case .name: print(key.text)
    case .table, .wide: print(value.isEmpty ? key.text : "\(key.text) -> \(value.text)")
    }
  }

  /// With the Service's name behind its number, where it is known.
  private static func naming(_ fields: [Field], _ services: ServiceNames) -> [Field] {
    guard let index = fields.firstIndex(where: { $0.name == "service" }),
      case .number(let number) = fields[index].value,
      let name = UInt32(exactly: number).flatMap({ services[$0] })
    else { return fields }
    var fields = fields
    fields.insert(Field("service-name", .text(name)), at: index + 1)
    return fields
  }

  private static func hex(_ bytes: UnsafeRawBufferPointer) -> String {
    let digits = Array("0123456789abcdef".utf8)
    var text: [UInt8] = []
    text.reserveCapacity(bytes.count * 2)
    for byte in bytes { text += [digits[Int(byte >> 4)], digits[Int(byte & 15)]] }
    return String(decoding: text, as: UTF8.self)
  }
}
